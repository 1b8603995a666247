// Direct convolutions, and linear layers as 1x1 convolutions of 1x1 pictures: no copy of the input is made, its pixels
// are the rows of the product and the taps are offsets.

// Bytes of an element of a type.
constexpr int64_t kBytes[] = {4, 2, 1, 1};

PYFLOW_INLINE const uint8_t* input_at(const Convolve& c, int64_t n, int64_t y, int64_t x) {
    return static_cast<const uint8_t*>(c.input.data) +
           (n * c.input.picture + y * c.input.row + x * c.input.pixel) * kBytes[static_cast<int>(c.input.type)];
}

template <class P>
inline void convolve_direct(const Convolve& c) {
    const int64_t bytes = kBytes[static_cast<int>(c.input.type)], per_step = kStep / bytes;
    int64_t taps[9];
    for (int64_t tap = 0; tap < c.taps * c.taps; ++tap)
        taps[tap] = c.taps == 1 ? 0 : ((tap / 3 - 1) * c.input.row + (tap % 3 - 1) * c.input.pixel) * bytes;

    Product product{};
    product.taps = taps;
    product.tap_count = c.taps * c.taps;
    product.steps = (c.input.channels + per_step - 1) / per_step;
    product.weights = static_cast<const uint8_t*>(c.weights);
    product.panel_bytes = product.tap_count * product.steps * kPanel * kStep;
    product.bias = c.bias;
    product.scales = c.scales;
    product.columns = c.output.channels;
    product.silu = c.silu;

    // The pixels of a row are evenly spaced; those of a picture, and pictures of one pixel, may be too.
    const int64_t height = c.output.height, width = c.output.width;
    const bool points = height * width == 1;
    product.a_row = (points ? c.input.picture : c.stride * c.input.pixel) * bytes;
    product.out_row = points ? c.output.picture : c.output.pixel;
    product.other_row = points ? c.other.picture : c.other.pixel;
    if (points) {
        for (int64_t begin = 0, end; begin < c.pictures; begin = end) {
            end = c.pictures;
            if (c.condition) {  // those that share a condition
                for (end = begin + 1; end < c.pictures && c.condition[end] == c.condition[begin];) ++end;
                product.other_row = 0;
            }
            product.a = input_at(c, begin, 0, 0);
            product.out = c.output.at<float>(begin, 0, 0);
            product.other = c.other.data ? c.other.at<float>(c.condition ? c.condition[begin] : begin, 0, 0) : nullptr;
            multiply<P>(product, end - begin);
        }
        return;
    }
    const bool even = c.stride == 1 && c.taps == 1 && c.input.row == width * c.input.pixel &&
                      c.output.row == width * c.output.pixel && (!c.other.data || c.other.row == width * c.other.pixel);
    const int64_t run = even ? height * width : width, runs = even ? 1 : height;
    for (int64_t column = 0; column < product.columns; column += kPanel, product.weights += product.panel_bytes)
        for (int64_t n = 0; n < c.pictures; ++n)
            for (int64_t y = 0; y < runs; ++y) {
                product.a = input_at(c, n, y * c.stride, 0);
                product.out = c.output.at<float>(n, y, 0);
                product.other = c.other.data ? c.other.at<float>(n, y, 0) : nullptr;
                rows_by_panel<P>(product, run, column, product.weights, width_of(product.columns - column));
            }
}
