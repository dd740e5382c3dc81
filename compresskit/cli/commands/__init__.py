"""The commands that are not stages, by name: each has a file here. Those of stages are their kinds'."""

COMMANDS = {
    "compress": "Find the smallest and fastest model that meets your limits.",
    "run": "Run the steps of a recipe in order and judge the result.",
    "verify": "Repeat the run that made a bundle, and compare the bytes.",
    "cache": "List or clear the cache of finished recipe steps.",
    "export": "Export a model to ONNX or another format, and verify it against the original.",
    "bench": "Compare latency, throughput and memory of models.",
    "evaluate": "Measure the quality of a model on data.",
    "compare": "Compare models with the first one: quality, size, speed, and a verdict.",
    "check": "Check a report against limits and against an earlier report.",
    "report": "Write a report as one self-contained HTML page, or log its figures.",
    "inspect": "Show the layers of a model and estimate what each compression method could save.",
    "recipe": "List, show, copy and check recipes: pipelines as YAML files.",
    "generate": "Generate text with a language model and print it while it is generated.",
    "predict": "Run a model on texts, images, rows of numbers or arrays.",
    "serve": "Serve a model over HTTP, a language model with OpenAI's API.",
    "mcp": "Let an assistant use the commands, with the Model Context Protocol over standard input and output.",
    "demo": "Train, quantize, export and measure a small model as a demo.",
    "doctor": "Show which engines and extras are installed, and how to install the missing ones.",
}
"""Name to one line of help; a test holds that each is its command's own first line."""

SUBCOMMANDS = {
    "lora": {
        "merge": "Merge an adapter into the weights of a model, in float64.",
        "list": "Show the type, ranks, layers and base model of an adapter.",
        "combine": "Combine two adapters into one.",
        "route": "Put several adapters beside a model, and choose among them by the input.",
    },
    "cache": {
        "ls": "List cached steps, most recently used first.",
        "clear": "Remove all cached steps.",
    },
    "recipe": {
        "ls": "List the built-in recipes.",
        "show": "Print a built-in recipe.",
        "cp": "Copy a built-in recipe as a starting point for your own.",
        "check": "Check a recipe and report all errors without running it.",
        "schema": "Print the JSON schema of recipe files for use in editors.",
    },
}
"""By command the words that may follow it, with one line of help.

For a stage they stand in MODEL's place: a MODEL of that name is written ``./merge``. Any other command needs one.
"""
