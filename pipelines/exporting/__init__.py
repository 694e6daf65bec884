"""Results in the formats of other programs: GGUF for llama.cpp, ONNX for onnxruntime."""
