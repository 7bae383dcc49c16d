"""Small Hugging Face models with random weights, written in hub layout by the tests themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = "the a cat dog sat on mat red blue fast slow bird sang song of old new city river".split()  # noqa: SIM905
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", "##ed"]
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
TEXT = (
    "bert",
    "roberta",
    "distilbert",
    "mpnet",
    "deberta",
    "deberta-v2",
    "deberta-v2-conv",
    "modernbert",
    "electra",
    "albert",
)
IMAGE = ("vit", "deit", "dinov2", "beit", "swin", "convnext", "resnet")
AUDIO = ("whisper", "wav2vec2", "wav2vec2-stable", "hubert", "wavlm", "ast")


def text_config(family: str) -> Any:
    """A config of the family, small enough to run in milliseconds."""
    import transformers as hf

    vocabulary = {"vocab_size": len(PIECES), "max_position_embeddings": 40, **SPECIAL}
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    made: dict[str, Callable[[], Any]] = {
        "bert": lambda: hf.BertConfig(**vocabulary, **SMALL),
        "roberta": lambda: hf.RobertaConfig(**vocabulary, **SMALL),
        "distilbert": lambda: hf.DistilBertConfig(**vocabulary, dim=32, n_layers=3, n_heads=4, hidden_dim=48),
        "mpnet": lambda: hf.MPNetConfig(**vocabulary, **SMALL),
        "deberta": lambda: hf.DebertaConfig(
            **vocabulary, **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
        "deberta-v2": lambda: hf.DebertaV2Config(
            **vocabulary, **SMALL, **relative, norm_rel_ebd="layer_norm", share_att_key=True
        ),
        "deberta-v2-conv": lambda: hf.DebertaV2Config(
            **vocabulary, **SMALL, **relative, conv_kernel_size=3, conv_act="gelu", embedding_size=16
        ),
        "modernbert": lambda: hf.ModernBertConfig(**vocabulary, **SMALL, local_attention=4),
        "electra": lambda: hf.ElectraConfig(**vocabulary, **SMALL, embedding_size=16),
        "albert": lambda: hf.AlbertConfig(**vocabulary, **SMALL, embedding_size=16),
    }
    return made[family]()


def image_config(family: str) -> Any:
    """A config of the family for pictures of 32 pixels."""
    import transformers as hf

    square = {"image_size": 32, "patch_size": 8}
    made: dict[str, Callable[[], Any]] = {
        "vit": lambda: hf.ViTConfig(**square, **SMALL),
        "deit": lambda: hf.DeiTConfig(**square, **SMALL),
        "dinov2": lambda: hf.Dinov2Config(**square, **SMALL),
        "beit": lambda: hf.BeitConfig(**square, **SMALL, use_mean_pooling=True, use_relative_position_bias=True),
        "swin": lambda: hf.SwinConfig(
            image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4
        ),
        "convnext": lambda: hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32),
        "resnet": lambda: hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    }
    return made[family]()


def audio_config(family: str) -> Any:
    """A config of the family for sounds of about a second at 16 kHz."""
    import transformers as hf

    # Five times fewer frames than the published networks; one of the convolutions is normalised over time.
    heard = {
        "conv_dim": (8, 8, 8), "conv_kernel": (10, 8, 8), "conv_stride": (10, 8, 4), "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.1,
    }  # fmt: skip
    layered = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    made: dict[str, Callable[[], Any]] = {
        "whisper": lambda: hf.WhisperConfig(
            vocab_size=60, d_model=32, encoder_layers=3, decoder_layers=1, encoder_attention_heads=4, num_mel_bins=20,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=100,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        "wav2vec2": lambda: hf.Wav2Vec2Config(**SMALL, **heard),
        "wav2vec2-stable": lambda: hf.Wav2Vec2Config(**SMALL, **heard, **layered),
        "hubert": lambda: hf.HubertConfig(**SMALL, **heard),
        "wavlm": lambda: hf.WavLMConfig(**SMALL, **heard, num_buckets=16, max_bucket_distance=40),
        "ast": lambda: hf.ASTConfig(**SMALL, num_mel_bins=16, max_length=100, patch_size=8, frequency_stride=4,
                                    time_stride=6),
    }  # fmt: skip
    return made[family]()


def write_audio(folder: Path, family: str) -> Path:
    """An audio model of the family with random weights, in hub layout."""
    import transformers as hf

    torch.manual_seed(7)
    hf.AutoModel.from_config(audio_config(family)).save_pretrained(folder)
    if family == "whisper":
        hf.WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(folder)
    elif family == "ast":
        hf.ASTFeatureExtractor(num_mel_bins=16, max_length=100).save_pretrained(folder)
    else:
        hf.Wav2Vec2FeatureExtractor(return_attention_mask=family == "wav2vec2-stable").save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer over a few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def write_text(folder: Path, family: str) -> Path:
    """A text model of the family with random weights, in hub layout."""
    from transformers import AutoModel

    torch.manual_seed(7)
    AutoModel.from_config(text_config(family)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_image(folder: Path, family: str) -> Path:
    """A vision model of the family with random weights, in hub layout."""
    from transformers import AutoModel

    torch.manual_seed(7)
    AutoModel.from_config(image_config(family)).save_pretrained(folder)
    settings = {
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder in hub layout, written once."""
    written: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in written:
            folder = tmp_path_factory.mktemp(family)
            write = write_text if family in TEXT else write_audio if family in AUDIO else write_image
            written[family] = write(folder, family)
        return written[family]

    return get
