"""Names that the file of a network with exits has beside `image` and `logits`. Needs neither torch nor onnx."""

THRESHOLDS = "thresholds"  # an input, float32 (E,): the confidence from which an image leaves; it has a default
EXIT_INDEX = "exit_index"  # an output, int64 (N,): the exit at which an image left, from 0; E: it went to the end
NEVER = 2.0  # a threshold that no confidence reaches
