"""Docstrings as `transformers` writes them, made readable for mkdocstrings: names become links, sections keep their form."""

import re

import griffe

PACKAGE = "modeling_visualbert"
SHARED = {"VisualBertPipeline": f"{PACKAGE}.hub_code.pipeline_visualbert.VisualBertPipeline"}  # on a page, not public


class DocstringsOfTransformers(griffe.Extension):
    """[`VisualBertConfig`] becomes a link, and "Args (beside those of ...):" a sentence and the section that it introduces."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        public = [str(name).strip("'\"") for name in pkg.exports or ()]
        for one in _objects(pkg, set()):
            if one.docstring:
                one.docstring.value = _rewrite(one.docstring.value, public)


def _objects(parent: griffe.Object, seen: set[str]):
    for member in parent.members.values():
        if not member.is_alias and member.path not in seen:
            seen.add(member.path)
            yield member
            yield from _objects(member, seen)


def _rewrite(text: str, public: list[str]) -> str:
    """A docstring with links to public names, and with sections that Google's style knows."""

    def link(found: re.Match) -> str:
        name = found[1]
        if name in SHARED:
            return f"[`{name}`][{SHARED[name]}]"
        is_public = name.removesuffix(".forward") in public
        return f"[`{name}`][{PACKAGE}.{name}]" if is_public else f"`{name}`"

    text = re.sub(r"\[`([\w.]+)`\](?!\[|\()", link, text)
    text = re.sub(r"^( *)Args \((beside .*)\):$", r"\1Arguments \2:\n\n\1Args:", text, flags=re.MULTILINE)
    text = re.sub(r"^( *)Raises \((beside .*)\):$", r"\1Errors \2:\n\n\1Raises:", text, flags=re.MULTILINE)
    return re.sub(r"^( +[\w, ]+) \((`[^)]*\)?[^)]*)\):", _without_inner_marks, text, flags=re.MULTILINE)


def _without_inner_marks(found: re.Match) -> str:
    """A parameter's `(`torch.Tensor` of shape `(batch_size, 4)`, *optional*)` in plain text, as Google's style has it."""
    return f"{found[1]} ({re.sub('[`*]', '', found[2])}):"


__all__ = ["DocstringsOfTransformers"]
