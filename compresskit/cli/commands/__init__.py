"""The commands that are not stages, by name: each has a file here. Those of stages are their kinds'."""

COMMANDS = {
    "compress": "Find the smallest and fastest model that keeps your bars.",
    "run": "Run a recipe: its steps one after the other, with a verdict on the whole.",
    "verify": "Repeat the run that made a bundle, and compare the bytes.",
    "cache": "Show or clear what is kept of finished steps.",
    "export": "Write a model as ONNX, proven equal to the original.",
    "bench": "Measure latency, throughput and memory of models against each other.",
    "evaluate": "Measure the quality of a model on data.",
    "compare": "Hold models against the first one: quality, size and speed, as a verdict.",
    "check": "Gate a build: hold a report to limits, and to the report of an earlier run.",
    "report": "Draw a report as one HTML page with pictures, which needs no network.",
    "inspect": "Show layers, parameters, bytes, MACs and zeros of a model, and what each stage could do with it.",
    "recipe": "List, show, copy and check recipes: pipelines as YAML files.",
    "predict": "Ask a model: classes of images and texts, embeddings of texts, outputs of arrays.",
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
    },
    "cache": {
        "ls": "List the finished steps that are kept, the last used first.",
        "clear": "Remove all finished steps that are kept.",
    },
    "recipe": {
        "ls": "List the recipes that come with compresskit.",
        "show": "Print a recipe that comes with compresskit.",
        "cp": "Copy a recipe that comes with compresskit, to be changed.",
        "check": "Check a recipe whole, without running anything.",
        "schema": "Print the JSON schema of recipe files, for editors.",
    },
}
"""By command the words that may follow it, with one line of help.

For a stage they stand in MODEL's place: a MODEL of that name is written ``./merge``. Any other command needs one.
"""
