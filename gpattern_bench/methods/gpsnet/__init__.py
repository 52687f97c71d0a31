"""GPSNet, the paper's model: KNN-attention for use anywhere, the network, and its training."""

from gpattern_bench.methods.gpsnet.attention import KNNAttention, knn_attention
from gpattern_bench.methods.gpsnet.plan import KNNPlan, join_plans, knn_plan

__all__ = ["KNNAttention", "KNNPlan", "join_plans", "knn_attention", "knn_plan"]
