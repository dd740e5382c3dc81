"""``compresskit predict`` and :func:`compresskit.pipeline`: answers of a model to texts, images and rows of numbers.

``samples`` reads what a user has, ``answers`` makes scores and embeddings of outputs, ``pipeline`` runs the model in
between. Nothing here imports torch.
"""
