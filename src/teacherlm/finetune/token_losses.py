"""The loss of a token, given its logits, with its gradient by the logits.

cross-entropy        the target is the next token
with_teacher         the target is the next token and the teacher's kept probabilities (soft_targets.py)
jensen_shannon       the target is the teacher's whole distribution (on_policy.py)
"""

import torch


def loss_and_gradient(logits_NV, labels_N, weight_N1, of_teacher=None):
    """Token weight x loss of each row, and the gradient of their sum by the logits, which overwrites them.

    Args:
        of_teacher: (rows that have a distribution of the teacher, its tokens, its probabilities, its share), or None.
            The loss of the other rows is the cross-entropy.
    """
    logits_NV -= logits_NV.amax(1, keepdim=True)
    chosen_N1 = logits_NV.gather(1, labels_N[:, None])
    total_N1 = logits_NV.exp_().sum(1, keepdim=True)
    loss_N1 = (total_N1.log() - chosen_N1) * weight_N1
    grad_NV, learnt_N1 = logits_NV.mul_(weight_N1 / total_N1), weight_N1
    if of_teacher is not None and len(of_teacher[0]):
        loss_N1, learnt_N1 = with_teacher(grad_NV, loss_N1, weight_N1, *of_teacher)
    return loss_N1, grad_NV.scatter_add_(1, labels_N[:, None], -learnt_N1)


def with_teacher(grad_NV, loss_N1, weight_N1, rows_M, ids_MK, probs_MK1, share):
    """Add the divergence from the teacher to the losses of some rows, and its gradient to theirs.

    By the logits, the divergence of K + 1 outcomes has the gradient q - p at the K tokens, and q (1 - p_rest / q_rest)
    at the others, with the student's probabilities q and the teacher's p.

    Args:
        grad_NV: token weight x the student's probabilities; rows that have a distribution are changed.
        loss_N1: token weight x cross-entropy.

    Returns:
        The losses, and the part of each token weight that belongs to the label.
    """
    least = torch.finfo(grad_NV.dtype).tiny
    weight_M1 = weight_N1[rows_M].clamp(min=least)
    student_MV = grad_NV[rows_M] / weight_M1
    chosen_MK = student_MV.gather(1, ids_MK)
    others_M1 = student_MV.scatter_(1, ids_MK, 0.0).sum(1, keepdim=True)
    outcomes_MK1 = torch.cat([chosen_MK, others_M1], 1).clamp(min=least)
    divergence_M1 = divergence(probs_MK1, outcomes_MK1.log())[:, None]
    student_MV *= 1 - share * probs_MK1[:, -1:] / outcomes_MK1[:, -1:]
    student_MV.scatter_(1, ids_MK, chosen_MK).scatter_add_(1, ids_MK, -share * probs_MK1[:, :-1])
    grad_NV[rows_M] = student_MV * weight_M1
    mixed_M1 = (1 - share) * loss_N1[rows_M] + share * divergence_M1 * weight_M1
    return loss_N1.index_put((rows_M,), mixed_M1), weight_N1.index_put((rows_M,), (1 - share) * weight_M1)


def divergence(probs_MK1: torch.Tensor, logprobs_MK1: torch.Tensor) -> torch.Tensor:
    """KL divergence of the teacher's probabilities from the student's log-probabilities, [M]."""
    least = torch.finfo(logprobs_MK1.dtype).min
    return torch.where(probs_MK1 > 0, probs_MK1 * (probs_MK1.log() - logprobs_MK1.clamp(min=least)), 0.0).sum(1)


def jensen_shannon(student_NV: torch.Tensor, teacher_NV: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """The generalized Jensen-Shannon divergence of two distributions, given by their logits, [N].

    beta x KL(teacher || mixture) + (1 - beta) x KL(student || mixture), with mixture = beta x teacher + (1 - beta) x
    student (Agarwal et al. 2024, arXiv 2306.13649, equation 1).
    """
    student_NV, teacher_NV = student_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    shares = torch.tensor([beta, 1 - beta], dtype=student_NV.dtype, device=student_NV.device).log()
    mixture_NV = torch.logsumexp(torch.stack([teacher_NV + shares[0], student_NV + shares[1]]), 0)
    terms_NV = beta * expected_log_ratio(teacher_NV, mixture_NV) + (1 - beta) * expected_log_ratio(
        student_NV, mixture_NV
    )
    return terms_NV.sum(-1)


def expected_log_ratio(logprobs_NV: torch.Tensor, others_NV: torch.Tensor) -> torch.Tensor:
    """p log(p / q) of each token, which is 0 where p is 0."""
    ratio_NV = torch.where(logprobs_NV == -torch.inf, 0.0, logprobs_NV - others_NV)
    return logprobs_NV.exp() * ratio_NV


def shannon_and_gradient(logits_NV, teacher_NV, weight_N1, beta: float = 0.5):
    """Token weight x jensen_shannon of each row, [N, 1], and the gradient of their sum by the student's logits."""
    with torch.enable_grad():
        student_NV = logits_NV.detach().requires_grad_()
        loss_N1 = jensen_shannon(student_NV, teacher_NV, beta)[:, None] * weight_N1
        (grad_NV,) = torch.autograd.grad(loss_N1.sum(), student_NV)
    return loss_N1.detach(), grad_NV
