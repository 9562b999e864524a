"""Which format an image file has: by its first bytes, and by its name where they say nothing."""

from pathlib import Path

from unet_repro.errors import InputError
from unet_repro.files.file_access import read_bytes

READ_SUFFIXES = {
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".png",), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
}
# What holds images, in formats that are not read: a folder's are refused, never left out.
OTHER_SUFFIXES = tuple(
    """
    .bmp .dib .gif .webp .jpe .jfif .jp2 .j2k .j2c .jpf .jpx .jxl .jxr .wdp .heic .heif .avif
    .apng .pbm .pgm .ppm .pnm .pam .tga .xbm .xpm .pcx .psd .xcf .exr .hdr .qoi .ico .raw .dng
    .cr2 .cr3 .nef .arw .npy .npz .h5 .hdf .hdf5 .he5 .ims .zarr .n5 .btf .tf2 .tf8 .tif.gz
    .tiff.gz .lsm .stk .svs .ndpi .scn .flex .qptiff .nd2 .czi .zvi .lif .lof .xlef .oib .oif
    .oir .vsi .ics .ids .dv .r3d .mrc .mrcs .rec .map .st .dm2 .dm3 .dm4 .emd .ser .emi .bcf .sif
    .spe .sxm .am .nrrd .nhdr .mha .mhd .nii .nii.gz .dcm .dicom .fits .fit
    """.split()
)
_SIGNATURES = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\x93NUMPY": "NumPy's",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\xda\xce\xbe\x0a": "ND2",
    b"ZISRAWFILE": "CZI",
    b"8BPS": "Photoshop's",
    b"BM": "BMP",
    b"RIFF": "WebP",
    **dict.fromkeys((b"P5\n", b"P6\n", b"P4\n"), "PNM"),
}
_LONGEST = max(map(len, _SIGNATURES))


def format_of(path: Path) -> str:
    """Return "TIFF", "PNG" or "JPEG"; a file of unknown content has the format that its name says.

    `InputError`: it cannot be read, has another format, or its name says another one.
    """
    beginning = read_bytes(path, _LONGEST)
    named = READ_SUFFIXES.get(path.suffix.lower())
    found = [form for signature, form in _SIGNATURES.items() if beginning.startswith(signature)]
    if not found:
        return named or "TIFF"
    if found[0] not in READ_SUFFIXES.values():
        raise InputError(f"{path}: its format is {found[0]}; convert it to TIFF, PNG or JPEG")
    if named not in (None, found[0]):
        suffix = next(end for end, form in READ_SUFFIXES.items() if form == found[0])
        raise InputError(
            f"{path}: its format is {found[0]}, not {named} as its name says; name it "
            f"{path.stem}{suffix}"
        )
    return found[0]
