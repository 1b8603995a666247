// The errors of pyflow/errors.py; bindings.cpp turns each into its namesake.
#pragma once

#include <stdexcept>

namespace pyflow {

struct InvalidInput : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

struct InvalidArtefact : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct BackendUnavailable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace pyflow
