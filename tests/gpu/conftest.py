"""Models and graphs that every kind of device runs: `small_model` and `small_graph` of a test."""

from leakyforge.models import ZOO

SMALL = {
    "dcgan-discriminator": {"features": 8},
    "dcgan-generator": {"features": 8},
    "digits": {"batch": 3},
    "hifigan": {"version": 3, "frames": 2},
    "melgan": {"frames": 4, "features": 4},
    "mlp": {"hidden": 24, "batch": 2},
    "patchgan": {"size": 24, "features": 8},
    "pix2pix-unet": {"size": 16, "depth": 3, "features": 8},
    "resnet18": {"size": 32, "features": 4, "classes": 3},
    "rrdbnet": {"blocks": 1, "features": 16, "growth": 8, "height": 6, "width": 10},
    "small-cnn": {"size": 24, "features": 4},
    "speech-embedding": {"frames": 76, "features": 4},
    "yolov2-tiny": {"size": 32, "features": 4, "classes": 2},
    "yolov3": {"size": 32, "features": 4, "classes": 2},
    "yolov3-tiny": {"size": 32, "features": 4, "classes": 2},
}
GRAPHS = [
    # Sizes that no tile divides.
    "g (float[1,3,13,17] x, float[5,3,3,3] w) => (float[1,5,13,17] y)"
    "{ c = Conv <pads = [1,1,1,1]> (x, w) y = LeakyRelu <alpha = 0.1> (c) }",
    "g (float[3,37] x, float[37,11] w) => (float[3,11] y)"
    "{ c = MatMul (x, w) y = LeakyRelu <alpha = 0.1> (c) }",
    "g (float[2,5,9] x, float[5,3,4] w) => (float[2,3,20] y)"
    "{ y = ConvTranspose <strides = [2]> (x, w) }",
    "g (float[1,2,7,9] x) => (float[1,2,3,4] y)"
    "{ y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (x) }",
    "g (float[3,7] x) => (float[3,7] y) { y = Softmax (x) }",
    # An output that is an input, and one that is another's other shape.
    "g (float[4,6] x) => (float[4,6] y, float[24] z) <int64[1] s = {24}>"
    "{ y = Identity(x) l = LeakyRelu(x) z = Reshape(l, s) }",
    "g (float[3] x) => (float[3] y, float[2] z) <float[2] w = {1.0, 2.0}>"
    "{ y = LeakyRelu(x) z = Identity(w) }",
]


def pytest_generate_tests(metafunc):
    if "small_model" in metafunc.fixturenames:
        # Shapes of a voice depend on values, which no launch plan can hold.
        names = [name for name in ZOO if name != "vits"]
        metafunc.parametrize("small_model", [(name, SMALL[name]) for name in names], ids=names)
    if "small_graph" in metafunc.fixturenames:
        metafunc.parametrize("small_graph", GRAPHS)
