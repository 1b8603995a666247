// One network call of a plan: the twin of Row in pyflow/core.py, in the same order.
#pragma once

namespace pyflow {

struct Row {
    double s, t;        // the times that the network is told
    double a, b, h, n;  // y = a*x + b*p + h*previous + n*noise
    double ka, ks;      // kept pixels = ka*image + ks*noise0
};

}  // namespace pyflow
