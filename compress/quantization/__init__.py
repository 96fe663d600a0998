"""Float network in, int8 ONNX file out: a quantizer shaped for ONNX Runtime, on torchao's PT2E flow."""
