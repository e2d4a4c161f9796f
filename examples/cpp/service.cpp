// A small HTTP service on the engine, with cpp-httplib.   service PORT [CHECKPOINT]
//
//   curl -HContent-Type:image/png --data-binary @a.png 'localhost:8080/ask?question=Circles%3F'
//
// The events come as lines of JSON while the question runs; who hangs up cancels theirs.
// GET /health and /stats. SIGTERM and SIGINT end it.
#include <httplib.h>
#include <signal.h>
#include <stagebeam.hpp>

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

namespace {

using stagebeam::Image;

int http_status(stagebeam_status status) {
  switch (status) {
    case STAGEBEAM_INVALID_ARGUMENT:
    case STAGEBEAM_IMAGE_ERROR:
      return 400;
    case STAGEBEAM_CAPACITY_ERROR:
      return 413;
    case STAGEBEAM_CANCELLED:
      return 503;
  }
  return 500;
}

stagebeam::QuestionOptions options_of(const httplib::Request& request) {
  stagebeam::QuestionOptions options;
  const auto number = [&](const char* name) -> std::optional<std::int64_t> {
    if (!request.has_param(name)) return std::nullopt;
    return std::strtoll(request.get_param_value(name).c_str(), nullptr, 10);
  };
  options.beam_size = number("beam_size");
  options.max_tokens = number("max_tokens");
  if (const auto seed = number("seed")) options.seed = static_cast<std::uint64_t>(*seed);
  if (request.has_param("strategy")) options.strategy = request.get_param_value("strategy");
  return options;
}

void ask(stagebeam::Engine& engine, const httplib::Request& request, httplib::Response& response) {
  std::optional<Image> image;
  if (!request.body.empty()) image = Image::encoded(std::as_bytes(std::span(request.body)));
  const auto question = std::make_shared<stagebeam::Question>(
      engine.submit(request.get_param_value("question"), image, options_of(request)));
  response.set_chunked_content_provider(
      "application/x-ndjson", [question](size_t, httplib::DataSink& sink) {
        const auto event = question->next(std::chrono::milliseconds(200));
        if (event && !(sink.write(event->json.data(), event->json.size()) && sink.write("\n", 1))) {
          return false;
        }
        if (question->has_ended()) sink.done();
        return sink.is_writable();
      });
}

std::string stats_json(const stagebeam_stats& stats) {
  return "{\"num_running\": " + std::to_string(stats.num_running) +
         ", \"num_blocks\": " + std::to_string(stats.num_blocks) +
         ", \"num_free_blocks\": " + std::to_string(stats.num_free_blocks) + "}\n";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::cerr << "usage: service PORT [CHECKPOINT]\n";
    return 2;
  }
  sigset_t signals;  // blocked here and so in every thread: the last one of main waits for them
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  stagebeam::Engine engine({.path = argc > 2 ? argv[2] : "", .kv_cache_bytes = 256 << 20});
  httplib::Server server;
  server.set_payload_max_length(32 << 20);
  server.Post("/ask", [&](const httplib::Request& request, httplib::Response& response) {
    try {
      ask(engine, request, response);
    } catch (const stagebeam::Error& error) {
      response.status = http_status(error.status());
      response.set_content(std::string(error.what()) + "\n", "text/plain");
    }
  });
  server.Get("/health", [](const httplib::Request&, httplib::Response& response) {
    response.set_content("ok\n", "text/plain");
  });
  server.Get("/stats", [&](const httplib::Request&, httplib::Response& response) {
    response.set_content(stats_json(engine.stats()), "application/json");
  });
  if (!server.bind_to_port("127.0.0.1", std::atoi(argv[1]))) {
    std::cerr << "cannot listen on port " << argv[1] << "\n";
    return 1;
  }
  std::thread listening([&] { server.listen_after_bind(); });
  std::cout << "listening on 127.0.0.1:" << argv[1] << std::endl;
  int received = 0;
  sigwait(&signals, &received);
  server.stop();
  listening.join();
} catch (const stagebeam::Error& error) {
  std::cerr << stagebeam_status_name(error.status()) << ": " << error.what() << "\n";
  return 1;
}
