"""An untrained text-to-image model as methods meet it, of the parts of the task `canvas`."""

from __future__ import annotations

import torch

from slugbench.bench import Budget, Request, Scores, TensorSplit, Validation
from slugbench.tasks import _canvas_answers, _canvas_model, _canvas_recipe
from slugbench.tasks._canvas_scenes import OBJECTS
from slugbench.tasks._diffusion import Contrast, Denoising, editable
from slugbench.tasks.canvas import _candidates, bare_names

NEON = 3


def pipeline(seed=0):
    made = _canvas_model.new_pipeline(_canvas_model.new_clip(seed).text_model.eval(), _canvas_model.new_unet(seed).eval())
    made.set_progress_bar_config(disable=True)
    return made


def objective(made, domain="style", target=NEON):
    """To forget a style or an object; its CLIP has the text encoder of the pipeline of seed 0."""
    kept = torch.tensor([i for i in range(len(_canvas_answers.DOMAINS[domain])) if i != target])
    candidates, nothing = _candidates(domain), _canvas_model.tokens(_canvas_model.tokenizer(), [""])
    labels = {_canvas_answers.DOMAINS[domain][target]: target}
    contrast = Contrast(_canvas_model.new_clip(0).eval(), candidates, kept)
    return Denoising(made.vae, made.scheduler, nothing, candidates, kept, labels, bare_names(), contrast)


def pictures(rows, domain="style"):
    """A batch of some of the validation pictures."""
    known = _canvas_recipe.pictures("validation").rows(rows)
    cell = known.style * len(OBJECTS) + known.object
    columns = {"image": known.image, "text": _canvas_recipe.tokens_of_cells()[cell], "cell": cell}
    return {**columns, "label": getattr(known, domain), "index": torch.arange(len(cell))}


def batch(n=6, domain="style"):
    """Pictures of different styles and objects."""
    return pictures(torch.arange(0, 13 * n, 13), domain)


def neon_request(*scores, seed=0):
    """To forget the style neon, of an untrained model; `validate` returns these forget accuracies in turn, then the last."""
    made = pipeline(seed)
    style = _canvas_recipe.pictures("validation").style
    forget, retain = (TensorSplit(pictures(torch.nonzero(mine)[:48, 0])) for mine in (style == NEON, style != NEON))
    left = list(scores or (0.0,))

    def validate(model, *, retain=True):
        return Scores(left.pop(0) if len(left) > 1 else left[0], 0.9 if retain else float("nan"), 0.01)

    return Request(
        model=editable(made),
        targets=("neon",),
        forget=forget,
        retain=retain,
        validation=Validation(forget, retain),
        objective=objective(made),
        validate=validate,
        budget=Budget(max_steps=40, max_reads=4000, max_evals=50),
        goal=0.1,
        floor=0.8,
        generator=torch.Generator().manual_seed(0),
    )
