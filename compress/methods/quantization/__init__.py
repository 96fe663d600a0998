"""Float network in, int8 ONNX file out: a quantizer shaped for ONNX Runtime, on torchao's PT2E flow."""

import logging

# torchao, imported after this, makes torch log a notice about one of torchao's own enums.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
