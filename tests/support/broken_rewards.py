"""Rewards of a user's own, nearly all broken in a way of their own, and two that are sound."""


class Swapped:
    def score(self, prompts, images):
        return [float(len(image)) for image in images]


class SwappedUnnamed:
    def score(self, a, b):
        return [float(len(one)) for one in b]


class Picky:
    def score(self, images, prompts):
        return [image.mean() if image.shape[0] > 64 else float("nan") for image in images]


class Constant:
    def score(self, images, prompts):
        return [0.5] * len(images)


class Deaf:
    reads_prompt = True

    def score(self, images, prompts):
        return images.mean(axis=(1, 2, 3))


class Redness(Deaf):
    reads_prompt = False


class Standardized(Redness):
    def score(self, images, prompts):
        found = super().score(images, prompts)
        return (found - found.mean()) / (found.std() + 1)


class Moody(Redness):
    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        return super().score(images, prompts) + 100 * self.calls


class Sorted(Redness):
    def score(self, images, prompts):
        return sorted(super().score(images, prompts))


class Remembers(Redness):
    def __init__(self):
        self.known = {}

    def score(self, images, prompts):
        found = super().score(images, prompts)
        return [self.known.setdefault(prompt, score) for prompt, score in zip(prompts, found, strict=True)]


class Crashes(Redness):
    def score(self, images, prompts):
        raise FileNotFoundError("head.pth")


class Nothing(Redness):
    def score(self, images, prompts):
        return [None] * len(images)


class Infinite(Redness):
    def score(self, images, prompts):
        return super().score(images, prompts) * float("inf")


class Gaps(Redness):
    def score(self, images, prompts):
        return [score if score > 210 else None for score in super().score(images, prompts)]


class Spread:
    def score_group(self, images, prompt):
        means = images.mean(axis=(1, 2, 3))
        return abs(means - means.mean())
