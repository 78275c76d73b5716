"""Measures of what a generator makes, each with its definition in its docstring.

==============  ======================================================================================================
metrics         likeness to the truth over regions of pixels: PSNR, SSIM, Laplacian-pyramid L1, sharpness
perceptual      LPIPS, Inception features, Frechet and kernel distances; weights from packages that may be absent
temporal        warping error, flicker, jumps at block boundaries, drift, revisits
camera          how well frames follow the commanded camera: poses by PnP on known geometry, trajectories
bootstrap       intervals over scenes, paired between two generators
==============  ======================================================================================================

Frames are uint8 [N, H, W, 3] tensors, masks bool [N, H, W], one value a frame comes as float64 [N]. What cannot be
measured (an empty mask, a pose that was not found) is NaN in tensors and None in summaries, and is counted, never
dropped in silence.
"""
