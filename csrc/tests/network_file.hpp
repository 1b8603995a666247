// Writes network files: valid ones, whose records a test then spoils.
#pragma once

#include <memory>
#include <vector>

#include "../network/graph.hpp"
#include "testing.hpp"

namespace pyflow::testing {

// Bytes at a multiple of 64, as in a mapped file, and not one more than their number.
class File {
  public:
    explicit File(const std::vector<uint8_t>& content);
    const uint8_t* data() const { return data_.get(); }
    size_t size() const { return size_; }

  private:
    struct Free {
        void operator()(uint8_t* data) const { ::operator delete(data, std::align_val_t{64}); }
    };
    std::unique_ptr<uint8_t, Free> data_;
    size_t size_;
};

struct NetworkFile {
    network::Header header{};
    std::vector<network::Buffer> buffers;
    std::vector<network::Tensor> tensors;
    std::vector<network::Operation> operations;
    std::vector<uint8_t> weights;

    // Counts and places of the tables follow from the tables.
    std::vector<uint8_t> content() const;
    network::Operation& named(const std::string& name);
    // Numbers of one picture's x.
    int64_t given() const;
    const network::Buffer& buffer_of(uint32_t tensor) const { return buffers[tensors[tensor].buffer]; }
};

// `depth` layers of `width`, a class table where `classes` are known.
NetworkFile mlp(Random& random, uint32_t width, uint32_t depth, uint32_t classes);

// Two resolutions, attention at the lower one, skips by concatenation. `height` is a multiple of 8. Algorithms and
// types are drawn for each convolution, and channels told beside the state, or plain float32 and none when `exact`.
NetworkFile unet(Random& random, uint32_t channels, uint32_t height, bool exact);

// Operations drawn one after another over whatever the ones before have made.
NetworkFile drawn(Random& random, int64_t operations);

// One of the above, of a size that runs in milliseconds.
NetworkFile any_network(Random& random);

}  // namespace pyflow::testing
