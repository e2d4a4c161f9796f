"""stagebeam: a decoding engine for vision-language models that reason in stages."""
