"""Rewards of a user's own, as configs name them: `tests.support.custom:Failing`."""


class Failing:
    """A reward that raises on every second call, or on all."""

    def __init__(self, every: int) -> None:
        self.every, self.calls = every, 0

    def score(self, images, prompts):
        self.calls += 1
        if self.calls % self.every == 0:
            raise ConnectionError("the scorer hung up")
        return [float(n) for n in range(len(images))]


class Exhausted:
    """A reward that raises from its `after`-th call on."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def score(self, images, prompts):
        self.calls += 1
        if self.calls >= self.after:
            raise ConnectionError("the scorer hung up")
        return [float(n) for n in range(len(images))]


class Equal:
    """A reward that finds all images equally good."""

    def score(self, images, prompts):
        return [1.0] * len(images)


class Spoilt:
    """A reward that is only watched, and says less with every evaluation."""

    def __init__(self):
        self.calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return [-(self.calls // 3) + 0.01 * n for n in range(len(images))]


class Praise(Spoilt):
    """One to train on that says more instead; groups differ, so that there is something to learn."""

    def score(self, images, prompts):
        spoilt = super().score(images, prompts)
        return [-value + float(image.mean()) / 1e4 for value, image in zip(spoilt, images, strict=True)]


class Sees:
    """A reward that says of each image how bright it is; with `answer` "raise" it raises, else it says that."""

    def __init__(self, answer=None) -> None:
        self.answer = answer

    def score(self, images, prompts):
        return [float(image.mean()) for image in images]

    def describe(self, images, prompts):
        if self.answer == "raise":
            raise TimeoutError("no answer in 3 s")
        if self.answer is not None:
            return self.answer
        return [f"{prompt}, as bright as {image.mean():.1f}" for image, prompt in zip(images, prompts, strict=True)]
