"""The embedded corpus as official VQA v2 files: questions JSON, and annotations JSON with ten annotators per question."""

from __future__ import annotations

from random import Random

from .questions import OPPOSITES, Question, sample_questions
from .scenes import COLORS, SHAPES, Scene

_WORDS = {str(i): word for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six"])}
_SPELLINGS = {**_WORDS, "big": "large", "small": "little"}  # other ways to give the same answer


def vqa_records(scenes: list[Scene], split: str, questions_per_scene: int, seed: int) -> tuple[dict, dict]:
    """The contents of the questions file and of the annotations file."""
    header = {
        "info": {"description": "Embedded corpus of modeling_visualbert: rendered scenes", "version": "1.0"},
        "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        "data_type": "shapes",
        "data_subtype": split,
    }
    questions, annotations = [], []
    for scene in scenes:
        asked = sample_questions(scene, questions_per_scene, f"{seed}/vqa/{scene.image_id}")
        for number, question in enumerate(asked):
            ids = {"image_id": scene.image_id, "question_id": scene.image_id * 1000 + number}
            questions.append({**ids, "question": question.text})
            annotations.append(
                {
                    **ids,
                    "question_type": question.kind,
                    "answer_type": question.answer_type,
                    "multiple_choice_answer": question.answer,
                    "answers": _ten_annotators(question, Random(f"{seed}/annotators/{ids['question_id']}")),
                }
            )
    task = {"task_type": "Open-Ended"}
    return {**header, **task, "questions": questions}, {**header, "annotations": annotations}


def _ten_annotators(question: Question, rng: Random) -> list[dict]:
    """Usually all agree. In one of four questions, one or two annotators are wrong; some spell the answer differently."""
    wrong = rng.randint(1, 2) if rng.random() < 0.25 else 0
    respelled = rng.randint(1, 2) if question.answer in _SPELLINGS and rng.random() < 0.2 else 0
    answers = [rng.choice(_mistakes(question)) for _ in range(wrong)]
    answers += [_SPELLINGS[question.answer]] * respelled if respelled else []
    answers += [question.answer] * (10 - len(answers))
    rng.shuffle(answers)
    return [
        {
            "answer": answer,
            "answer_confidence": "yes" if answer == question.answer else rng.choice(("yes", "maybe", "no")),
            "answer_id": i + 1,
        }
        for i, answer in enumerate(answers)
    ]


def _mistakes(question: Question) -> list[str]:
    """Wrong answers that a careless annotator could give."""
    answer = question.answer
    if answer in OPPOSITES:
        return [OPPOSITES[answer]]
    if question.kind == "count":
        return [str(max(0, int(answer) - 1)) if answer != "0" else "1", str(int(answer) + 1)]
    return [other for other in (COLORS if question.kind == "color" else SHAPES) if other != answer]
