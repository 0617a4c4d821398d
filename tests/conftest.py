"""Set up before anything imports `transformers`: no network, an empty cache of its own, one thread."""

import contextlib
import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MODELING_VISUALBERT_CACHE"] = tempfile.mkdtemp(prefix="modeling_visualbert_tests_")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="modeling_visualbert_tests_")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two spinning threads on a busy machine are up to 100 times slower

import pytest

with contextlib.suppress(ModuleNotFoundError):  # the tests that do without it (.ci/matrix.py)
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A small embedded corpus: 60 training, 20 dev and 20 test scenes."""
    from modeling_visualbert.corpus.build import CorpusConfig, build_corpus

    folder = tmp_path_factory.mktemp("corpus") / "shapes"
    build_corpus(folder, CorpusConfig(train_scenes=60, val_scenes=20, test_scenes=20), progress=False)
    return folder
