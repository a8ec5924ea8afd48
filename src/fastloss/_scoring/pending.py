import numpy as np
import fastloss
from types import SimpleNamespace as NS
def score_samples(logits, target, *, ignore_index, axis):
    ig = target == ignore_index
    lab = np.where(ig, 0, target)
    got = fastloss.score_samples(logits, lab, axis=axis)
    x = np.asarray(logits, np.float64) 
    t = np.take_along_axis(x, np.expand_dims(lab, axis), axis)
    rank = (x >= t).sum(axis) - 1
    return NS(log_prob=np.where(ig, np.nan, got.log_prob), predicted=got.predicted, predicted_log_prob=got.predicted_log_prob, entropy=got.entropy, rank=rank)
def brier_score(logits, target, *, ignore_index, axis, reduction):
    ig = target == ignore_index
    lab = np.where(ig, 0, target)
    x = np.asarray(logits, np.float64)
    p = np.exp(fastloss.log_softmax(x, axis=axis))
    t = np.take_along_axis(p, np.expand_dims(lab, axis), axis).squeeze(axis)
    return np.where(ig, 0, (p*p).sum(axis) - 2*t + 1)
