"""The Space: `visualbert demo` with the checkpoints that the Space's variable MODELS names, a tab for each."""

import os

from modeling_visualbert.demo.page import serve

models = os.environ.get("MODELS", "").split()
if not models:
    raise SystemExit(
        "MODELS is empty; expected the names of checkpoints, such as 'user/visualbert-vqa user/visualbert-nlvr2'"
    )
serve(models)
