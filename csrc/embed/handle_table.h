// Ids for objects that cross the C ABI: kind, generation and index, never a pointer.
//
// A stale, foreign or made-up id finds nothing, so a double destroy is an error and not a crash. An
// object that is removed while another thread uses it lives until that thread lets go of it.
// Invariant: an id that has been removed never becomes valid again.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace stagebeam::embed {

using HandleId = uint64_t;  // kind << 56 | generation << 24 | index; 0 is never one

constexpr HandleId kNoHandle = 0;

template <typename T>
class HandleTable {
 public:
  static constexpr int kIndexBits = 24;
  static constexpr int kKindShift = 56;
  static constexpr uint32_t kMaxIndex = (1u << kIndexBits) - 1;

  explicit HandleTable(uint8_t kind) : kind_(kind) {}

  // The new object's id; kNoHandle where every index is taken or worn out.
  HandleId insert(std::shared_ptr<T> object) {
    const std::lock_guard guard(mutex_);
    uint32_t index;
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else if (slots_.size() <= kMaxIndex) {
      index = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      return kNoHandle;
    }
    slots_[index].object = std::move(object);
    ++num_alive_;
    return id_of(index);
  }

  // The object, or null where the id is none of a living one.
  std::shared_ptr<T> find(HandleId id) const {
    const std::lock_guard guard(mutex_);
    const uint32_t index = index_of(id);
    return is_alive(index, id) ? slots_[index].object : nullptr;
  }

  // Takes the object out; null where the id is none of a living one.
  std::shared_ptr<T> remove(HandleId id) {
    const std::lock_guard guard(mutex_);
    const uint32_t index = index_of(id);
    if (!is_alive(index, id)) return nullptr;
    Slot& slot = slots_[index];
    std::shared_ptr<T> object = std::exchange(slot.object, nullptr);
    --num_alive_;
    if (++slot.generation != 0) free_.push_back(index);  // a worn out index is left out for good
    return object;
  }

  std::vector<std::shared_ptr<T>> all() const {
    const std::lock_guard guard(mutex_);
    std::vector<std::shared_ptr<T>> objects;
    for (const Slot& slot : slots_) {
      if (slot.object) objects.push_back(slot.object);
    }
    return objects;
  }

  size_t size() const {
    const std::lock_guard guard(mutex_);
    return num_alive_;
  }

 private:
  struct Slot {
    uint32_t generation = 1;
    std::shared_ptr<T> object;
  };

  HandleId id_of(uint32_t index) const {
    return HandleId{kind_} << kKindShift | HandleId{slots_[index].generation} << kIndexBits | index;
  }
  static uint32_t index_of(HandleId id) { return static_cast<uint32_t>(id) & kMaxIndex; }
  bool is_alive(uint32_t index, HandleId id) const {
    return index < slots_.size() && slots_[index].object && id_of(index) == id;
  }

  const uint8_t kind_;
  mutable std::mutex mutex_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  size_t num_alive_ = 0;
};

}  // namespace stagebeam::embed
