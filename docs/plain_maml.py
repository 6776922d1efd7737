"""MAML in plain PyTorch, to be read in one sitting; `python docs/plain_maml.py` trains it in half a minute.

Nothing is fast, checked or configurable here. This project's engine is, and computes the same meta-gradient to 1e-9 in
float64: tests/documents/test_plain_maml.py. Letters: N way, K shot, Q query images per class, B tasks.

Source: Finn et al. 2017, Algorithm 2; network and step weights: Antoniou et al. 2019 (MAML++).
"""

import torch
import torch.nn.functional as F

N, K, Q, B, SIDE, FILTERS, BLOCKS = 5, 1, 5, 4, 16, 16, 2


def initial_weights():
    """Draw theta, which MAML learns: the place from where a few steps of gradient descent solve a new task."""
    theta = {}
    for i in range(BLOCKS):
        theta[f"block{i}.conv.weight"] = torch.nn.init.xavier_uniform_(torch.empty(FILTERS, FILTERS if i else 1, 3, 3))
        theta[f"block{i}.conv.bias"] = torch.zeros(FILTERS)
        theta[f"block{i}.norm.weight"], theta[f"block{i}.norm.bias"] = torch.ones(FILTERS), torch.zeros(FILTERS)
    theta["head.weight"] = torch.nn.init.xavier_uniform_(torch.empty(N, FILTERS * (SIDE // 2**BLOCKS) ** 2))
    theta["head.bias"] = torch.zeros(N)
    return {name: value.requires_grad_() for name, value in theta.items()}


def classify(theta, images):
    """Return logits (n, N) of images (n, C, H, W), which are normalised together: transductive batch norm."""
    x = images
    for i in range(sum(name.endswith("conv.weight") for name in theta)):
        x = F.conv2d(x, theta[f"block{i}.conv.weight"], theta[f"block{i}.conv.bias"], padding=1)
        x = F.batch_norm(x, None, None, theta[f"block{i}.norm.weight"], theta[f"block{i}.norm.bias"], training=True)
        x = F.max_pool2d(F.leaky_relu(x), 2)
    return F.linear(x.flatten(1), theta["head.weight"], theta["head.bias"])


def outer_loss(theta, task, step_weights=(0.0, 0.0, 1.0), rate=0.4):
    """Adapt theta to the support images of a task, a step per weight; return loss and accuracy on its query images.

    theta[s+1] = theta[s] - rate * grad L(theta[s], support)
    outer loss = sum over s of step_weights[s] * L(theta[s+1], query): MAML counts the last step alone, MAML++ all.
    """
    (support_images, support_labels), (query_images, query_labels) = task
    adapted = [name for name in theta if ".norm." not in name]  # the norms' weights are left to the outer loop
    loss = 0.0
    for weight in step_weights:
        support_loss = F.cross_entropy(classify(theta, support_images), support_labels)
        # create_graph keeps the gradient a function of theta, so that the outer loss is differentiated through it as
        # well: second order. Without it the gradient would count as a constant, which is first-order MAML.
        gradients = torch.autograd.grad(support_loss, [theta[name] for name in adapted], create_graph=True)
        theta = theta | {name: theta[name] - rate * g for name, g in zip(adapted, gradients, strict=True)}
        logits = classify(theta, query_images)
        loss = loss + weight * F.cross_entropy(logits, query_labels)
    return loss, (logits.argmax(dim=1) == query_labels).float().mean()


def draw_task():
    """Draw the support and query set of N new classes, each a pattern of 4 x 4 squares that is seen through noise."""
    patterns = F.interpolate(torch.randn(N, 1, 4, 4), SIDE)
    labels = [torch.arange(N).repeat_interleave(n) for n in (K, Q)]
    return [(patterns[y] + 2 * torch.randn(len(y), 1, SIDE, SIDE), y) for y in labels]


def main(n_iterations=100):
    """Meta-train; every task is new, so its accuracy is that on tasks never seen before."""
    theta = initial_weights()
    optimizer = torch.optim.Adam(theta.values(), lr=0.005)
    accuracies = []
    for iteration in range(1, n_iterations + 1):
        losses, of_tasks = zip(*(outer_loss(theta, draw_task()) for _ in range(B)), strict=True)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        accuracies.extend(of_tasks)
        if iteration % 20 == 0:
            print(f"iteration {iteration}: accuracy {100 * torch.stack(accuracies[-20 * B :]).mean():.1f} %")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
