"""An encoder in PyTorch in, ONNX graphs out: float32, float16, 8-bit integers."""
