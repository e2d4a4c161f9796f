#include "event.h"

#include <charconv>
#include <cstdio>

namespace stagebeam::embed {

namespace {

void append_quoted(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", byte);
      out += escaped;
    } else {
      out += c;
    }
  }
  out += '"';
}

template <typename T>
void append_list(std::string& out, const std::vector<T>& numbers) {
  out += '[';
  for (size_t i = 0; i < numbers.size(); ++i) {
    char digits[32];
    const auto written = std::to_chars(digits, digits + sizeof(digits), numbers[i]);
    if (i > 0) out += ", ";
    out.append(digits, written.ptr);
  }
  out += ']';
}

}  // namespace

std::string token_json(const Event& event) {
  std::string out;
  out.reserve(event.stage.size() + event.text.size() + 32 * event.token_ids.size() + 128);
  out += "{\"type\": \"token_text\", \"stage\": ";
  append_quoted(out, event.stage);
  out += ", \"round\": " + std::to_string(event.round);
  out += ", \"candidate\": " + std::to_string(event.candidate) + ", \"text\": ";
  append_quoted(out, event.text);
  out += ", \"token_ids\": ";
  append_list(out, event.token_ids);
  out += ", \"logprobs\": ";
  append_list(out, event.logprobs);
  out += '}';
  return out;
}

}  // namespace stagebeam::embed
