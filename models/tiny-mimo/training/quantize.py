"""Number formats of the checkpoint: MXFP4 (E2M1 codes + E8M0 scale per 32 inputs) and block FP8 e4m3fn."""
import torch

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SIGNED = torch.cat([E2M1, -E2M1])
PAIRS = torch.stack([SIGNED.repeat(16), SIGNED.repeat_interleave(16)], -1)      # the two values of a byte, low nibble first


def mx_exponent(w):
    """Smallest power of two such that amax <= 7 * 2^e: at most the top value is clipped, by no more than one
    rounding step. The same rule is used for quantisation-aware training and for export."""
    amax = w.abs().amax(-1, keepdim=True).clamp_min(2.0 ** -100)
    return torch.ceil(torch.log2(amax / 7.0)).clamp(-127, 120)


def e2m1_round(a):
    """Round magnitudes a >= 0 to the E2M1 grid."""
    return torch.where(a < 2, torch.round(a * 2) * 0.5, torch.where(a < 4, torch.round(a), torch.round(a * 0.5) * 2)).clamp_max(6.0)


def mx_fake(w):
    """Quantise and dequantise along the last axis in blocks of 32."""
    b = w.reshape(*w.shape[:-1], -1, 32)
    s = torch.exp2(mx_exponent(b))
    q = b / s
    return (torch.sign(q) * e2m1_round(q.abs()) * s).reshape(w.shape)


class MxSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w): return mx_fake(w)
    @staticmethod
    def backward(ctx, g): return g


def mx_pack(w):
    """w [out, in] -> (codes u8 [out, in/2], scale u8 [out, in/32])"""
    w = w.float()
    b = w.reshape(w.shape[0], -1, 32)
    e = mx_exponent(b)
    q = b / torch.exp2(e)
    mag = torch.bucketize(e2m1_round(q.abs()), E2M1 - 0.1) - 1
    code = (mag + 8 * (q < 0).long() * (mag > 0)).reshape(w.shape).to(torch.uint8)
    return (code[:, 0::2] | (code[:, 1::2] << 4)).contiguous(), (e.squeeze(-1) + 127).to(torch.uint8).contiguous()


def mx_unpack(codes, scale):
    v = torch.nn.functional.embedding(codes.int(), PAIRS).reshape(codes.shape[0], -1, 32)
    return (v * torch.exp2(scale.float() - 127)[..., None]).reshape(codes.shape[0], -1)


def fp8_pack(w, block=128):
    """w [out, in] -> (e4m3fn [out, in], scale f32 [ceil(out/128), ceil(in/128)])"""
    w = w.float(); q = torch.empty_like(w)
    s = torch.empty((w.shape[0] + block - 1) // block, (w.shape[1] + block - 1) // block)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            v = w[i * block:(i + 1) * block, j * block:(j + 1) * block]
            s[i, j] = v.abs().max().clamp_min(1e-12) / 448.0
            q[i * block:(i + 1) * block, j * block:(j + 1) * block] = v / s[i, j]
    return q.clamp(-448, 448).to(torch.float8_e4m3fn), s


def fp8_unpack(q, s, block=128):
    r = s.repeat_interleave(block, 0)[:q.shape[0]].repeat_interleave(block, 1)[:, :q.shape[1]]
    return q.float() * r
