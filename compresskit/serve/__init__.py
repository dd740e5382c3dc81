"""``compresskit serve``: one model over HTTP.

An ONNX model speaks the Open Inference Protocol (KServe v2): ``tensors`` reads and writes its tensors, ``engine`` runs
the model, ``app`` has the routes. A language model speaks OpenAI's API: ``completions`` reads requests and writes
answers, ``text`` has the routes. Both share ``http`` (bodies, errors, health, metrics), ``workers`` (a bounded number
of threads and of requests that wait) and ``server``, which listens and drains. Nothing here imports torch.
"""
