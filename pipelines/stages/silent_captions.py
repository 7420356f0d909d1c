"""Stage `silent_captions`: captions of every clip's sound by the fine-tuned captioner, which cannot hear it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pipelines.engine.row_stage import Rows, RowSet, with_constants
from pipelines.engine.stage import Context
from pipelines.engine.storage import Storage
from pipelines.run_config import Config
from pipelines.stages.captioner import ADAPTER_FOLDER
from pipelines.stages.captions import CAPTION, CaptionRecipe, CaptionStage, CaptionWorker, read_prompts
from pipelines.stages.model_refs import model_of


class SilentCaptionsStage(CaptionStage):
    """Silent captioning stage. Model, instruction and frames are the captioner's; no sound file is opened."""

    name = "silent_captions"
    reads = ("clips", "captioner")
    ledgers = ("silent_captions",)
    config_keys: ClassVar[Mapping[str, str]] = {"model": "captioner.model", "frames": "captioner.training.frames"}

    def recipe(self, config: Config, storage: Storage) -> CaptionRecipe:
        return CaptionRecipe(
            model=model_of(config.captioner.model, "captioner.model", storage),
            frames=config.captioner.training.frames,
            sampling=config.silent_captions.sampling,
            with_sound=False,
            prompts=read_prompts(config.captioner.instruction, None),
        )

    def rows(self, context: Context) -> Rows:
        recipe: CaptionRecipe = context.recipe
        adapter, prompt = context.inputs["captioner"], recipe.prompts.render("")
        clips = context.inputs["clips"].rows("clip_id", "label", "split", "video")
        clips = with_constants(clips, prompt=prompt, adapter=adapter.committed().digest)
        execution = context.config.silent_captions.execution
        worker = CaptionWorker(recipe, execution, context.storage, adapter.name(ADAPTER_FOLDER))
        parts = ("clip_id", "prompt", "adapter")
        rows = RowSet(self.name, recipe, clips.select([*parts, "video"]), parts, CAPTION, worker)
        return Rows(clips.select(["clip_id", "label", "split", "prompt"]), [rows])
