"""A complete plug-in: `slugbench run quick --plugin examples/my_method.py --methods slug,my_method --out results/mine`."""

from dataclasses import dataclass

import torch

from slugbench.bench import Model, Request, method


@method("my_method")
@dataclass(frozen=True)
class MyMethod:
    """Climb the forget loss, held back by the training loss of what is kept, until the targets are forgotten."""

    learning_rate: float = 1e-3
    hold: float = 2.0  # weight of the kept samples' loss

    def __call__(self, request: Request) -> Model:
        model, objective, draw = request.model, request.objective, request.generator
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        for step in range(request.budget.max_steps):
            forget, retain = (next(split.batches(32, draw)) for split in (request.forget, request.retain))
            loss = self.hold * objective.loss(model, retain) - objective.forget_loss(model, forget)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 5 == 4 and request.reached(request.validate(model, retain=False)):
                break
        return model
