"""The commands by name; those that are not stages have a file here each."""

COMMANDS = {
    "prune": "Take out of a model what it can do without: channels, blocks or single weights.",
    "factorize": "Write layers as products of smaller ones: matrices of low rank, smaller convolutions.",
    "quantize": "Store weights in 2 to 8 bit, or run in 8 bit with calibration data.",
    "distill": "Train MODEL, the student, to say what a teacher says, with labels or without.",
    "lora": "Train small adapters beside a model's weights, and merge, list or combine them.",
    "export": "Write a model as ONNX, proven equal to the original.",
    "bench": "Measure latency, throughput and memory of models against each other.",
    "evaluate": "Measure the quality of a model on data.",
    "compare": "Hold models against the first one: quality, size and speed, as a verdict.",
    "inspect": "Show layers, parameters, bytes, MACs and zeros of a model.",
    "serve": "Answer inference requests over HTTP, as the Open Inference Protocol (KServe v2) says.",
    "demo": "Train, quantize, export and measure a small model, as a tour.",
    "doctor": "Show what is installed here, what is missing and how to get it.",
}
"""Name to one line of help; a test holds that each is its command's own first line."""

SUBCOMMANDS = {
    "lora": {
        "merge": "Fold an adapter into the weights of a model, in float64.",
        "list": "Show what an adapter holds: its kind, ranks, layers and base.",
        "combine": "Make one adapter of two.",
    }
}
"""Words that may stand in MODEL's place, with one line of help; a MODEL of that name is written ``./merge``."""
