"""docs/own_loop.md: its loop, plain torch and, where they are installed, the libraries that it names agree."""

import re
from importlib.util import find_spec

import pytest
import torch
from torch.func import functional_call

from tests.tools.documented_commands import blocks_of
from utils.paths import REPOSITORY_ROOT

TEXT = (REPOSITORY_ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
SHARED, HERE, USED, OF_ROWS, *THERE = [block.text for block in blocks_of("own_loop.md", TEXT)]
LIBRARIES = re.findall(r"^### (\w+)$", TEXT, re.MULTILINE)
OF_LIBRARIES = dict(zip(LIBRARIES, THERE, strict=True))


@pytest.fixture
def page():
    """The names of the page's first block, in float64; its tasks are drawn once."""
    torch.set_default_dtype(torch.float64)
    names = {}
    exec(SHARED, names)
    tasks = names["draw_tasks"]()
    names["draw_tasks"] = lambda: tasks
    yield names
    torch.set_default_dtype(torch.float32)


def names_here(page, *blocks):
    """Execute blocks of our side once, in float64; return the names that they leave."""
    text = "\n".join(blocks).replace("range(3)", "range(1)")
    text = text.replace("keys |= {", 'keys |= {"precision": "float64", ')
    text = text.replace("draw_tasks())", "draw_tasks(), dtype=torch.float64)")
    text = text.replace("labels[:, 5:])", "labels[:, 5:], dtype=torch.float64)")
    names = dict(page)
    exec(text, names)
    return names


def gradients_here(names):
    """Return the gradients in the order of the network's parameters."""
    return [parameter.grad for parameter in names["learner"].meta_parameters().values()]


def gradients_there(page, library):
    """Execute the block of a library; return what it leaves in the network's parameters."""
    names = dict(page)
    exec(OF_LIBRARIES[library], names)
    return [parameter.grad for parameter in names["network"].parameters()]


def difference(some, others):
    """Return the largest difference of a tensor, relative to its norm."""
    pairs = zip(some, others, strict=True)
    return max(float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)) for one, other in pairs)


def plain_gradients(page):
    """The equation in plain torch: theta - rate * gradient, n_steps times, differentiated through."""
    network, start = page["network"], dict(page["network"].named_parameters())
    losses = []
    for support_x, support_y, query_x, query_y in zip(*page["draw_tasks"](), strict=True):
        theta = start
        for _ in range(page["n_steps"]):
            loss = page["cross_entropy"](functional_call(network, theta, (support_x,)), support_y)
            of_each = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
            theta = {
                name: value - page["inner_rate"] * gradient
                for (name, value), gradient in zip(theta.items(), of_each, strict=True)
            }
        losses.append(page["cross_entropy"](functional_call(network, theta, (query_x,)), query_y))
    return torch.autograd.grad(torch.stack(losses).mean(), list(start.values()))


def test_the_loop_of_the_page_has_the_meta_gradient_of_plain_torch(page):
    assert difference(gradients_here(names_here(page, HERE)), plain_gradients(page)) < 1e-9


def test_so_has_the_one_of_rows_of_a_table(page):
    names = names_here(page, HERE, OF_ROWS)
    rows, labels = names["rows"], names["labels"]
    tasks = rows[:, :5], labels[:, :5], rows[:, 5:], labels[:, 5:]
    theirs = plain_gradients(names | {"network": names["network_of_rows"], "draw_tasks": lambda: tasks})
    assert difference(gradients_here(names), theirs) < 1e-9


@pytest.mark.full
@pytest.mark.parametrize("library", [name for name in LIBRARIES if find_spec(name.lower())])
def test_the_loop_of_a_library_has_the_same(page, library):
    assert difference(gradients_here(names_here(page, HERE)), gradients_there(page, library)) < 1e-6


def test_the_table_has_the_lines_of_the_blocks():
    def lines(text):
        return sum(bool(line.strip()) for line in text.splitlines())

    rows = re.findall(r"^\| (\w+) [\d.]+ \|[^|]+\| (\d+) \| (\d+) \|", TEXT, re.MULTILINE)
    assert rows == [(name, str(lines(text)), str(lines(HERE))) for name, text in OF_LIBRARIES.items()]
    assert lines(HERE) <= 20
