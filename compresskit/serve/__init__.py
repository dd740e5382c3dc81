"""``compresskit serve``: one ONNX model behind the Open Inference Protocol (KServe v2), over HTTP.

``tensors`` reads and writes the protocol's tensors, ``engine`` runs the model in a bounded number of threads, ``app``
answers requests, ``server`` listens and drains. Nothing here imports torch.
"""
