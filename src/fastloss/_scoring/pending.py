import numpy as np
import fastloss
from types import SimpleNamespace as NS
def score_samples(logits, target, *, ignore_index, axis, temperature=1.0):
    logits = logits if temperature == 1 else np.asarray(logits, float) / temperature
    ig = target == ignore_index
    lab = np.where(ig, 0, target)
    got = fastloss.score_samples(logits, lab, axis=axis)
    x = np.asarray(logits, np.float64) 
    t = np.take_along_axis(x, np.expand_dims(lab, axis), axis)
    rank = (x >= t).sum(axis) - 1
    return NS(log_prob=np.where(ig, np.nan, got.log_prob), predicted=got.predicted, predicted_log_prob=got.predicted_log_prob, entropy=got.entropy, rank=rank, variance=_var(x, axis))
def _var(x, axis):
    p = np.exp(fastloss.log_softmax(x, axis=axis)); m=(p*x).sum(axis, keepdims=True)
    return (p*(x-m)**2).sum(axis)
def brier_score(logits, target, *, ignore_index, axis, reduction):
    ig = target == ignore_index
    lab = np.where(ig, 0, target)
    x = np.asarray(logits, np.float64)
    p = np.exp(fastloss.log_softmax(x, axis=axis))
    t = np.take_along_axis(p, np.expand_dims(lab, axis), axis).squeeze(axis)
    return np.where(ig, 0, (p*p).sum(axis) - 2*t + 1)
def compare_logits(a, b, target, *, ignore_index, temperature, axis):
    x = fastloss.log_softmax(np.asarray(a, np.float64) / temperature, axis=axis)
    y = fastloss.log_softmax(np.asarray(b, np.float64) / temperature, axis=axis)
    kl = np.maximum((np.exp(x) * (x - y)).sum(axis), 0)
    rk = np.maximum((np.exp(y) * (y - x)).sum(axis), 0)
    pa, pb = x.argmax(axis), y.argmax(axis)
    la = lb = None
    if target is not None:
        ig = target == ignore_index
        lab = np.where(ig, 0, target)
        if ((lab < 0) | (lab >= x.shape[axis])).any(): raise IndexError("x")
        e = np.expand_dims(lab, axis)
        la = np.where(ig, np.nan, np.take_along_axis(x, e, axis).squeeze(axis))
        lb = np.where(ig, np.nan, np.take_along_axis(y, e, axis).squeeze(axis))
    return NS(kl=kl, reverse_kl=rk, same_prediction=pa == pb, predicted=pa, other_predicted=pb, log_prob=la, other_log_prob=lb)
