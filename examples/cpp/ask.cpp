// Ask several questions about one image at once.   ask IMAGE QUESTION...
#include <stagebeam.hpp>

#include <fstream>
#include <iostream>
#include <iterator>

static std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int main(int argc, char** argv) try {
  if (argc < 3) {
    std::cerr << "usage: ask IMAGE QUESTION...\n";
    return 2;
  }
  const std::vector<char> bytes = read(argv[1]);
  const auto image = stagebeam::Image::encoded(std::as_bytes(std::span(bytes)));

  stagebeam::Engine engine({.kv_cache_bytes = 64 << 20});  // the bundled checkpoint
  const stagebeam::QuestionOptions options{.beam_size = 2, .max_tokens = 100, .seed = 7};

  // As futures: all are in flight together, and share the image and the batch.
  std::vector<std::future<stagebeam::Answer>> answers;
  for (int i = 2; i < argc; ++i) answers.push_back(engine.ask(argv[i], image, options));
  for (int i = 2; i < argc; ++i) {
    std::cout << argv[i] << " " << answers[i - 2].get().conclusion << "\n";
  }

  // As callbacks: the first question again, its tokens as they come.
  auto listening = engine.listen(
      [](const stagebeam::Event& event) {
        if (event.type == STAGEBEAM_TOKEN_TEXT && event.candidate == 0) std::cout << event.text;
      },
      argv[2], image, options);
  listening.wait();
  std::cout << "\n";
} catch (const stagebeam::Error& error) {
  std::cerr << stagebeam_status_name(error.status()) << ": " << error.what() << "\n";
  return 1;
}
