"""Which clips: frames, boxes, order, mirroring, and the plan of a clip, without reading a video.

In: lengths, rates and sizes of videos, and settings. Out: `plans.ClipPlan`s, which `decoding`
carries out. Only `draws`, `boxes` and `training` import TensorFlow, so that prediction needs none.
"""
