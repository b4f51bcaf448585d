"""How simulated volumes may look: ranges to draw from, and one draw."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neurodeploy.simulate._camera import Camera, PixelType

Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """One concrete appearance: what an :class:`Appearance` gave for one volume.

    Lengths are voxels of the y and x axes unless a field says otherwise; grey levels
    are those of the stored image. The fields are described at :class:`Appearance`.
    """

    pixel_type: PixelType
    saturation: int
    background: float
    offset: float
    noise: float
    gain: float
    read_noise: float
    clip_below: float
    anisotropy: float
    psf_xy: float
    psf_z: float
    haze: float
    haze_extent: float
    slow_variation: float
    regions: float
    texture: float
    texture_cell: int
    mottle: float
    stripes: float
    plane_jitter: float
    neurite_share: float
    contrast: float
    contrast_spread: float
    radius: float
    radius_spread: float
    beads: float
    gaps: float
    tortuosity: float
    branching: float
    alignment: float
    clumping: float
    neurons: float
    vessels: float
    vessel_radius: float
    vessel_brightness: float
    cells: float
    puncta: float
    distractor_contrast: float
    visible_from: float

    @property
    def boost(self) -> float:
        """How much brighter a neurite is than its peak behind the optics.

        Of a disc of radius r blurred by a Gaussian, both of Gaussian shape: r² / 2
        over the geometric mean of r² / 2 + σ² on the two axes across the neurite.
        """
        own = self.radius**2 / 2
        z = own / self.anisotropy**2 + self.psf_z**2
        y = own + self.psf_xy**2
        return min(float(np.sqrt(y * z) * self.anisotropy / own), 15.0)

    @property
    def camera(self) -> Camera:
        """The camera that this volume was taken with."""
        return Camera(
            self.pixel_type,
            self.gain,
            self.read_noise,
            self.offset,
            self.saturation,
            self.clip_below,
        )


@dataclass(frozen=True)
class Appearance:
    """Ranges (low, high) from which every property of a volume is drawn.

    Rates and sizes that span decades are drawn uniformly in their logarithm, shares
    and strengths uniformly. A volume's `background` is in grey levels; `noise` is
    the camera's standard deviation there as a share of it; everything bright or
    textured is given in multiples of that noise, so that a range means the same at
    8 and at 16 bits. Defaults are those of cleared tissue under a light sheet, wider
    than the TRAILMAP and NeuroTorch volumes they were compared with.
    """

    pixel_types: tuple[PixelType, ...] = ("uint16",)
    saturations: tuple[int, ...] = (65535, 65535, 65535, 4095)
    background: Range = (120.0, 5000.0)
    #: camera offset, share of the background
    offset: Range = (0.05, 0.5)
    noise: Range = (0.025, 0.11)
    #: share of the noise's variance that is read noise
    read_share: Range = (0.05, 0.5)
    #: chance that values below background + `clip_below` noises are stored as 0
    clip_chance: float = 0.0
    clip_below: Range = (0.0, 3.0)
    #: z step over y, x step
    anisotropy: Range = (1.0, 2.2)
    psf_xy: Range = (0.6, 1.5)
    #: in z planes
    psf_z: Range = (0.8, 3.0)
    #: share of the light that is far out of focus
    haze: Range = (0.02, 0.3)
    haze_extent: Range = (6.0, 16.0)
    #: relative standard deviation over some hundred voxels
    slow_variation: Range = (0.0, 0.25)
    #: relative depth of darker regions with a border
    regions: Range = (0.0, 0.5)
    #: standard deviation of the tissue's fine texture, noises
    texture: Range = (0.2, 2.2)
    #: likewise of blotches of 6 to 12 voxels
    mottle: Range = (0.0, 1.2)
    stripes: Range = (0.0, 0.05)
    plane_jitter: Range = (0.0, 0.015)
    #: voxels on neurites
    neurite_share: Range = (0.0005, 0.12)
    #: typical peak of a neurite above the background, noises
    contrast: Range = (4.0, 60.0)
    #: standard deviation of its logarithm between neurites
    contrast_spread: Range = (0.4, 1.1)
    radius: Range = (0.5, 1.8)
    radius_spread: Range = (0.1, 0.4)
    beads: Range = (0.0, 1.5)
    gaps: Range = (0.0, 0.12)
    #: radians of turn in a step of one voxel
    tortuosity: Range = (0.03, 0.18)
    #: side branches in 100 voxels
    branching: Range = (0.0, 1.5)
    alignment: Range = (0.0, 2.0)
    #: standard deviation of the logarithm of local density
    clumping: Range = (0.0, 1.5)
    #: per million voxels: cell bodies with dendrites
    neurons: Range = (0.0, 0.4)
    #: per million voxels: vessels, dark or bright
    vessels: Range = (0.0, 8.0)
    vessel_radius: Range = (1.5, 9.0)
    #: 0 is lightless, 1 the tissue's own
    vessel_brightness: Range = (0.2, 0.95)
    #: chance that a volume's vessels shine, as stained blood does
    bright_vessels: float = 0.25
    #: per million voxels: round bodies that are not neurites
    cells: Range = (0.0, 25.0)
    #: per million voxels: bright dots that are not neurites
    puncta: Range = (0.0, 400.0)
    distractor_contrast: Range = (2.0, 25.0)
    #: a stretch dimmer than this many noises is neither neurite nor background
    visible_from: float = 1.5

    def draw(self, rng: np.random.Generator) -> Look:
        """One appearance, by this generator."""

        def log(range_: Range) -> float:
            return float(np.exp(rng.uniform(*np.log(range_))))

        def flat(range_: Range) -> float:
            return float(rng.uniform(*range_))

        pixel_type = self.pixel_types[int(rng.integers(len(self.pixel_types)))]
        saturation = self.saturations[int(rng.integers(len(self.saturations)))]
        background = log(self.background)
        noise = max(background * log(self.noise), 0.6)
        offset = background * flat(self.offset)
        read_share = flat(self.read_share)
        clip = flat(self.clip_below)
        vessel = flat(self.vessel_brightness)
        bright = rng.random() < self.bright_vessels
        clipped = rng.random() < self.clip_chance
        return Look(
            pixel_type=pixel_type,
            saturation=min(saturation, 255) if pixel_type == "uint8" else saturation,
            background=background,
            offset=offset,
            noise=noise,
            gain=(1.0 - read_share) * noise**2 / (background - offset),
            read_noise=float(np.sqrt(read_share)) * noise,
            clip_below=background + clip * noise if clipped else 0.0,
            anisotropy=log(self.anisotropy),
            psf_xy=log(self.psf_xy),
            psf_z=log(self.psf_z),
            haze=flat(self.haze),
            haze_extent=log(self.haze_extent),
            slow_variation=flat(self.slow_variation),
            regions=flat(self.regions),
            texture=flat(self.texture),
            texture_cell=int(rng.integers(1, 4)),
            mottle=flat(self.mottle),
            stripes=flat(self.stripes) * float(rng.random() < 0.5),
            plane_jitter=flat(self.plane_jitter) * float(rng.random() < 0.5),
            neurite_share=log(self.neurite_share),
            contrast=log(self.contrast),
            contrast_spread=flat(self.contrast_spread),
            radius=log(self.radius),
            radius_spread=flat(self.radius_spread),
            beads=flat(self.beads),
            gaps=flat(self.gaps),
            tortuosity=log(self.tortuosity),
            branching=flat(self.branching),
            alignment=flat(self.alignment),
            clumping=flat(self.clumping),
            neurons=flat(self.neurons),
            vessels=flat(self.vessels),
            vessel_radius=log(self.vessel_radius),
            vessel_brightness=2 - vessel if bright else vessel,
            cells=flat(self.cells) * float(rng.random() < 0.7),
            puncta=flat(self.puncta) * float(rng.random() < 0.7),
            distractor_contrast=log(self.distractor_contrast),
            visible_from=self.visible_from,
        )


#: Cleared tissue under a light sheet: what `Appearance()` is.
LIGHT_SHEET = Appearance()

#: A confocal stack of one or few filled neurons, 8 bits, background near zero and
#: often clipped away, coarse in z: the manner of BigNeuron's Gold166.
CONFOCAL = Appearance(
    pixel_types=("uint8",),
    saturations=(255,),
    background=(2.0, 25.0),
    offset=(0.02, 0.3),
    noise=(0.12, 0.4),
    read_share=(0.05, 0.6),
    clip_chance=0.6,
    anisotropy=(1.0, 4.5),
    psf_xy=(0.5, 1.3),
    psf_z=(0.6, 1.6),
    haze=(0.0, 0.08),
    slow_variation=(0.0, 0.1),
    regions=(0.0, 0.1),
    texture=(0.0, 0.6),
    mottle=(0.0, 0.5),
    neurite_share=(0.0002, 0.01),
    contrast=(4.0, 60.0),
    contrast_spread=(0.4, 1.1),
    radius=(0.45, 1.5),
    radius_spread=(0.15, 0.5),
    tortuosity=(0.05, 0.2),
    branching=(0.5, 3.5),
    neurons=(0.2, 2.0),
    vessels=(0.0, 1.0),
    cells=(0.0, 6.0),
    puncta=(0.0, 60.0),
)

#: What a plain `neurodeploy sample` shows: sparse bright axons in cleared tissue.
SHOWCASE = replace(
    LIGHT_SHEET,
    saturations=(65535,),
    background=(1300.0, 1900.0),
    noise=(0.04, 0.06),
    neurite_share=(0.006, 0.015),
    contrast=(18.0, 35.0),
    radius=(0.8, 1.3),
    tortuosity=(0.04, 0.09),
    clumping=(0.3, 0.8),
    psf_xy=(0.8, 1.1),
    psf_z=(1.2, 1.8),
    anisotropy=(1.0, 1.3),
    neurons=(0.02, 0.05),
)
