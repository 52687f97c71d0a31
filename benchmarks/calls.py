"""How far calls can be trusted: probabilities, thresholds, shares of cells, wrong calls, few molecules.

All of it is fitted to simulated val (the val splits of `synthetic` and `synthetic_wide` together)
and measured on `synthetic` test, on `synthetic_wide` test, whose cells have other settings than any
that the model has seen, and on both sets of human labels. Means over the seeds of a model trained
on simulated cells; 95 % intervals over cells, replicates averaged over seeds.

- *calibration*: error of the scores as probabilities, as they are and recalibrated
- *reliability*: share of pairs with the pattern, by probability
- *thresholds*: F1 at thresholds that no label of the scored set chose
- *quantification*: error of a gene's share of cells with a pattern
- *discoveries*: share of calls that are wrong, expected and true
- *abstention*: what is known of pairs with few molecules

The choices, with their rules, which were written before the first look at the gold sets here:

1. *Calibration by simulated val* is the way, of those fitted to simulated val, with the lowest Brier
   score on `synthetic_wide` test; the scores as they are, unless the difference from them has an
   interval without 0. *By human labels* (both gold sets pooled) is shipped instead only if
   calibrating each cell line by the labels of the other has a lower Brier score than that, over both
   lines, with an interval without 0.
2. *Thresholds*: the rule with the highest macro F1 over shifts of prevalence of `synthetic_wide`
   test (each pattern at .02 to .8 of the pairs); today's, the threshold of largest F1 on simulated
   val, unless the difference from it has an interval without 0. Gold shows what it is worth.
3. *Shares*: the estimator with the lowest mean absolute error over shifts of `synthetic_wide` test
   (samples of 10 and 50 pairs, of few, many or any molecules, shares 0 to .8), unless on the gold
   sets it is worse than counting calls with an interval without 0.
4. *Confident calls* (expected share of wrong ones at most .10) are shipped if their true share is at
   most .15 on `synthetic_wide` test and on the gold sets together, and each interval reaches .10.
5. *Not called* are pairs with fewer molecules than the least number from which on, in every larger
   bin too, the macro AUC on simulated val is .80.

Rerun: `python benchmarks/calls.py --out runs/gpsnet_real` with the runs of `gpsnet_real.py` (made if
they lack: five trainings), `--model FOLDER` for a saved model, or ``--quick``: one seed, two steps,
simulated cells only.
"""
