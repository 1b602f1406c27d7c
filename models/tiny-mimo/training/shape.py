"""The model's shape: the one place that training, drafter and export read it from."""
D, L, V, EPS = 384, 8, 4096, 1e-5                          # hidden size, layers, vocabulary rows, RMSNorm epsilon
SWA = [0, 1, 1, 1, 0, 1, 1, 0]                             # 1 = sliding window, 0 = full attention
HQ, HK, DQ, DV, ROT, WIN, VS = 8, 4, 192, 128, 64, 128, 0.612   # heads, head sizes, rotary dims, window, value scale
THETA_FULL, THETA_SWA = 1e7, 1e4
E, K, FF, DFF = 16, 4, 128, 1024                           # experts, top-k, expert width, width of dense layer 0

# Block drafter: TAPS are the target layers whose residual stream it reads.
DRAFT_L, DRAFT_HQ, DRAFT_HK, DRAFT_HD, DRAFT_FF, BLOCK, DRAFT_WIN, DRAFT_THETA = 3, 8, 4, 128, 768, 8, 1024, 1e4
TAPS = [0, 2, 4, 5, 7]
DRAFT_RANK = 64                                            # of the Markov head
GAMMA = 5.0                                                # the loss weighs block position k by exp(-(k - 1) / GAMMA)
