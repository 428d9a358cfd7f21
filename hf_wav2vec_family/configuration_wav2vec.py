"""Configuration of wav2vec (Schneider et al., 2019, arXiv:1904.05862)."""

from huggingface_hub.dataclasses import strict

from .causal_conv_fields import CausalConvConfig


@strict
class Wav2VecConfig(CausalConvConfig):
    r"""
    Configuration of [`Wav2VecModel`]; the defaults are the base model of Schneider et al., 2019, section 3.
    [`Wav2VecConfig.large`] is the paper's large one, as published.

    Where paper and original code disagree: the paper predicts the frames 1 to 12 ahead, the code 3 to 14
    (`prediction_offset="auto"`); the paper has a bias for each step, the code one for all (`prediction_bias`); the
    code draws the positive itself as a negative once in T times, here never; the published large model compresses
    its latent frames logarithmically, of which the paper says nothing.

    Every field is described in [`CausalConvConfig`], whose defaults these are.
    """

    model_type = "wav2vec"

    @classmethod
    def large(cls, **fields) -> "Wav2VecConfig":
        """The large model as published (`wav2vec_large.pt`); `fields` override.

        Against the base: two more layers of kernel 1 in the encoder (section 3.3 calls them linear; published, they
        have norm and ReLU too), twelve context layers of kernel 2 to 13 with skip connections, log compression, and
        the prediction offset of the original code.
        """
        large = {
            "conv_dim": (512,) * 7,
            "conv_kernel": (10, 8, 4, 4, 4, 1, 1),
            "conv_stride": (5, 4, 2, 2, 2, 1, 1),
            "context_dim": (512,) * 12,
            "context_kernel": tuple(range(2, 14)),
            "context_skip_connections": True,
            "log_compression": True,
            "prediction_offset": "auto",
        }
        return cls(**{**large, **fields})
