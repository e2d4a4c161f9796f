#include "event.h"

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

}  // namespace

std::string token_json(const Event& event) {
  std::string out;
  out.reserve(event.stage.size() + event.text.size() + 64);
  out += "{\"stage\": ";
  append_quoted(out, event.stage);
  out += ", \"candidate\": " + std::to_string(event.candidate) + ", \"text\": ";
  append_quoted(out, event.text);
  out += ", \"type\": \"token_text\"}";
  return out;
}

}  // namespace stagebeam::embed
