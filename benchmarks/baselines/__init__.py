"""What this engine is compared with: HF `generate` in two forms, and other engines."""
