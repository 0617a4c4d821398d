"""Where the training scripts and their recipes are."""

from __future__ import annotations

from pathlib import Path


def examples_folder() -> Path:
    """`examples`: inside an installed package, beside the package in a checkout."""
    installed = Path(__file__).parents[1] / "examples"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "examples"


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package, such as `vqa_finetune`.

    Raises:
        FileNotFoundError: There is no such file, and no recipe of that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = examples_folder() / "recipes"
    ours = folder / f"{path.name.removesuffix('.yaml')}.yaml"
    # `examples/recipes/vqa_finetune.yaml` is what a user of the repository writes, wherever the package lies.
    if (len(path.parts) == 1 or path.parts[-3:-1] == ("examples", "recipes")) and ours.is_file():
        return ours
    known = ", ".join(sorted(recipe.stem for recipe in folder.glob("*.yaml")))
    raise FileNotFoundError(f"{name}: no such recipe; expected a file, or one of {known}")


__all__ = ["examples_folder", "recipe_path"]
