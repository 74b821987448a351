"""The room for checkpoints: everything that lies under a work directory.

<workdir>/<stage>/stage.json            config and embeddings that the stage is trained with
<workdir>/<stage>/checkpoints/          Orbax checkpoints
<workdir>/<stage>/logs/                 TensorBoard events
<workdir>/<stage>/samples/              images made while training
<workdir>/<stage>/bad_steps/            steps that were not finite or whose loss jumped, if any
<workdir>/<stage>/damaged_checkpoints/  what --fall-back set aside, if anything
<workdir>/embeddings/                   of the corpus, where training was given one to embed

writing.py    Checkpointer: saves and restores the state of a training
reading.py    the newest or the best checkpoint of a stage, and its averaged weights
checksums.py  by which damaged arrays are recognised
lora.py       changes of weights of low rank: their files, and cascades with them
cascades.py   a whole cascade, opened or exported: pretrained.py is what opening returns,
              exported.py the form that is shipped, of safetensors; safety.py has the safety
              checker and the watermark of some
deepfloyd.py  import of DeepFloyd IF's public weights; deepfloyd_names.py has its names and config,
              deepfloyd_safety.py imports its safety checker and watermark, diffusers_files.py reads
              the files that a user downloaded, hub.py downloads them
claim.py      stage.json: what a stage was started with, and what a resumed run may change
"""
