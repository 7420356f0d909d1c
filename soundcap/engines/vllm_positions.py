"""Rotary positions of `soundcap.positions` inside vLLM.

vLLM 0.32 counts an interleaved block of Qwen2.5-Omni from the audio marker that precedes it, so each token
takes the position of the one after it: every patch of a frame looks shifted by one. Named as
`worker_extension_cls`, this module is imported by each worker process before the model is built, and
registers a model that is right.
"""

from typing import Any

import numpy as np
import torch
from vllm import ModelRegistry
from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration

from soundcap.positions import rope_positions, token_kinds


class OmniWithReferencePositions(Qwen2_5OmniThinkerForConditionalGeneration):  # type: ignore[misc]
    """vLLM's Qwen2.5-Omni with the positions of the reference implementation."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """Positions (3, L), and what to add to the index of each later token to get its position."""
        videos = [feature for feature in mm_features if feature.modality == "video"]
        assert len(videos) == 1, "a caption request holds one video"
        tokens = np.asarray(input_tokens)
        pairs, height, width = videos[0].data["video_grid_thw"].data.tolist()
        merge = self.config.vision_config.spatial_merge_size
        positions = rope_positions(
            token_kinds(tokens, self.config.video_token_index, self.config.audio_token_index),
            (pairs, height // merge, width // merge),
            videos[0].data["second_per_grid_ts"].data.item(),
            self.config.position_id_per_seconds,
        )
        return torch.from_numpy(positions), int(positions[:, -1].max()) + 1 - len(tokens)


class WorkerExtension:
    """Empty: vLLM imports this module to find it, and that is enough."""


ModelRegistry.register_model("Qwen2_5OmniForConditionalGeneration", OmniWithReferencePositions)
