"""Running compiled models with TVM's runtime alone: engine, tokenizer, sampling, generation."""
