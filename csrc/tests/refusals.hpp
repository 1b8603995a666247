// What the tests of parse share: networks, spoiled, and what must be said of them.
#pragma once

#include <functional>

#include "../errors.hpp"
#include "network_file.hpp"

namespace pyflow::testing {

using network::Operation;

// What parse says of these bytes; empty when it takes them.
inline std::string refusal(const std::vector<uint8_t>& content) {
    const File file(content);
    try {
        network::parse(file.data(), file.size());
    } catch (const InvalidArtefact& error) {
        return error.what();
    }
    return "";
}

inline void expect_refused(const std::vector<uint8_t>& content, const std::string& wanted) {
    const std::string said = refusal(content);
    EXPECT(said.find(wanted) != std::string::npos, "wanted '" + wanted + "', it said '" + said + "'");
    const std::string way_out = "; export it again";
    EXPECT(said.size() > way_out.size() && said.substr(said.size() - way_out.size()) == way_out, said);
}

using Spoil = std::function<void(NetworkFile&)>;

// A UNet of plain float32 convolutions with 8 channels of 8x8 is the network that each is done to.
inline void expect_refused(Random& random, const Spoil& spoil, const std::string& wanted) {
    NetworkFile file = unet(random, 8, 8, true);
    spoil(file);
    expect_refused(file.content(), wanted);
}

// Fields of an operation of that network.
inline Spoil with(const char* name, const std::function<void(Operation&)>& change) {
    return [=](NetworkFile& file) { change(file.named(name)); };
}

}  // namespace pyflow::testing
