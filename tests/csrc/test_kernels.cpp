// The kernels against a naive double loop, without Python: meant for AddressSanitizer and UBSan. Images and filters are allocated
// to the byte, so that a read or a write past their ends is seen.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "adderize.h"

namespace {

std::mt19937 generator(1);
int failures = 0, checks = 0;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

std::vector<float> noise(int64_t count, float offset) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float &v : values) v = normal(generator) + offset;
  return values;
}

struct Problem {
  adderize_shape s;
  std::vector<float> x, w, g;
  int64_t strides[4];

  double at_x(int64_t n, int64_t c, int64_t y, int64_t x_) const {
    if (y < 0 || y >= s.h || x_ < 0 || x_ >= s.w) return 0;
    return x[size_t(((n * s.h + y) * s.w + x_) * s.c + c)];
  }
  size_t weight_index(int64_t co, int64_t ci, int64_t ky, int64_t kx) const {
    return size_t(co * strides[0] + ci * strides[1] + ky * strides[2] + kx * strides[3]);
  }
};

struct Expected {
  std::vector<double> output, full, sign, filter, products, magnitudes;
};

Expected naive(const Problem &p) {
  const adderize_shape &s = p.s;
  const int64_t cg = s.c / s.groups, og = s.cout / s.groups;
  Expected e;
  e.output.assign(size_t(s.n * s.oh * s.ow * s.cout), 0);
  e.full.assign(p.x.size(), 0);
  e.sign.assign(p.x.size(), 0);
  e.filter.assign(p.w.size(), 0);
  e.products = e.magnitudes = e.filter;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t oy = 0; oy < s.oh; ++oy)
      for (int64_t ox = 0; ox < s.ow; ++ox)
        for (int64_t co = 0; co < s.cout; ++co) {
          const size_t o = size_t(((n * s.oh + oy) * s.ow + ox) * s.cout + co);
          for (int64_t ky = 0; ky < s.kh; ++ky)
            for (int64_t kx = 0; kx < s.kw; ++kx)
              for (int64_t i = 0; i < cg; ++i) {
                const int64_t y = oy * s.stride_h - s.padding_h + ky * s.dilation_h;
                const int64_t x = ox * s.stride_w - s.padding_w + kx * s.dilation_w, c = co / og * cg + i;
                const double d = p.w[p.weight_index(co, i, ky, kx)] - p.at_x(n, c, y, x), g = p.g[o];
                const double sign = d > 0 ? 1 : d < 0 ? -1 : 0;
                e.output[o] -= std::fabs(d);
                const size_t f = size_t(((co * s.kh + ky) * s.kw + kx) * cg + i);
                e.filter[f] -= g * sign;
                e.products[f] += g * p.at_x(n, c, y, x);
                e.magnitudes[f] += std::fabs(g * p.at_x(n, c, y, x));
                if (y < 0 || y >= s.h || x < 0 || x >= s.w) continue;
                const size_t q = size_t(((n * s.h + y) * s.w + x) * s.c + c);
                e.full[q] += g * (d > 1 ? 1 : d < -1 ? -1 : d);
                e.sign[q] += g * sign;
              }
        }
  return e;
}

// Errors relative to the largest of some magnitudes: those of the expected values, unless others are given.
void compare(const char *what, const Problem &p, const std::vector<float> &actual, const std::vector<double> &expected,
             const std::vector<double> &magnitudes = {}) {
  double scale = 1e-30, worst = 0;
  for (double v : magnitudes.empty() ? expected : magnitudes)
    if (std::isfinite(v)) scale = std::fmax(scale, std::fabs(v));
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(actual[i]) ? std::isnan(expected[i]) : actual[i] == expected[i]) continue;
    const double error = std::fabs(actual[i] - expected[i]) / scale;
    if (!(error <= worst)) worst = error;
  }
  ++checks;
  if (worst < 1e-5) return;
  ++failures;
  const adderize_shape &s = p.s;
  std::printf("%s on %s: error %g at n %ld c %ld %ldx%ld cout %ld kernel %ldx%ld groups %ld\n", what, adderize_active_cpu(), worst,
              long(s.n), long(s.c), long(s.h), long(s.w), long(s.cout), long(s.kh), long(s.kw), long(s.groups));
}

void expect(const char *what, bool good) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("%s\n", what);
}

int64_t out_size(int64_t in, int64_t k, int64_t stride, int64_t padding, int64_t dilation) {
  return (in + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
}

Problem random_problem() {
  Problem p = {};
  adderize_shape &s = p.s;
  const int64_t kinds[] = {1, 1, 1, 2, 3, 9};
  s.groups = kinds[pick(0, 5)];
  const int64_t most = s.groups == 1 ? 40 : 10;
  int64_t cg = pick(1, most), og = pick(1, most);
  if (pick(0, 3) == 0) cg = og = int64_t(1) << pick(0, 3), s.groups = pick(16 / cg, 40 / cg);  // read in place
  s.n = pick(1, 3), s.c = cg * s.groups, s.cout = og * s.groups;
  s.kh = pick(1, 5), s.kw = pick(1, 5), s.stride_h = pick(1, 3), s.stride_w = pick(1, 3);
  s.padding_h = pick(0, 2), s.padding_w = pick(0, 2), s.dilation_h = pick(1, 2), s.dilation_w = pick(1, 2);
  if (pick(0, 2) == 0) s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
  if (pick(0, 4) == 0) s.kh = s.kw = s.stride_h = s.stride_w = 1, s.padding_h = s.padding_w = 0;
  s.h = std::max<int64_t>(pick(1, 10), s.dilation_h * (s.kh - 1) + 1);
  s.w = std::max<int64_t>(pick(1, 18), s.dilation_w * (s.kw - 1) + 1);
  s.oh = out_size(s.h, s.kh, s.stride_h, s.padding_h, s.dilation_h);
  s.ow = out_size(s.w, s.kw, s.stride_w, s.padding_w, s.dilation_w);
  const float offsets[] = {0, 0, 1, 1000};
  p.x = noise(s.n * s.h * s.w * s.c, offsets[pick(0, 3)]);
  p.w = noise(s.cout * cg * s.kh * s.kw, offsets[pick(0, 3)]);
  p.g = noise(s.n * s.oh * s.ow * s.cout, 0);
  const int64_t taps = s.kh * s.kw;
  const bool last = pick(0, 1);
  p.strides[0] = cg * taps, p.strides[1] = last ? 1 : taps, p.strides[2] = last ? s.kw * cg : s.kw, p.strides[3] = last ? cg : 1;
  return p;
}

void check(const Problem &p) {
  const Expected e = naive(p);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int threads = int(pick(1, 3));
  for (int form : {ADDERIZE_FORM_AUTO, ADDERIZE_FORM_EXACT}) {
    std::vector<float> y(e.output.size(), nan);
    expect("forward failed", adderize_forward(&p.s, p.x.data(), p.w.data(), p.strides, y.data(), form, threads) == ADDERIZE_OK);
    compare(form == ADDERIZE_FORM_AUTO ? "forward" : "exact forward", p, y, e.output);
  }
  for (int gradient : {ADDERIZE_GRADIENT_FULL, ADDERIZE_GRADIENT_SIGN}) {
    std::vector<float> dx(p.x.size(), nan);
    expect("input gradient failed", adderize_input_gradient(&p.s, p.g.data(), p.x.data(), p.w.data(), p.strides, dx.data(),
                                                            gradient, threads) == ADDERIZE_OK);
    compare(gradient == ADDERIZE_GRADIENT_FULL ? "input gradient" : "sign input gradient", p, dx,
            gradient == ADDERIZE_GRADIENT_FULL ? e.full : e.sign);
  }
  std::vector<float> dw(p.w.size(), nan);
  expect("filter gradient failed",
         adderize_sign_filter_gradient(&p.s, p.g.data(), p.x.data(), p.w.data(), p.strides, dw.data(), threads) == ADDERIZE_OK);
  compare("sign filter gradient", p, dw, e.filter);
  std::vector<float> products(p.w.size(), nan);
  const int status = adderize_depthwise_products(&p.s, p.g.data(), p.x.data(), products.data(), threads);
  const bool depthwise = p.s.c == p.s.groups && p.s.cout == p.s.groups;
  expect("products of a layer that is not depthwise", depthwise == (status == ADDERIZE_OK));
  if (depthwise) compare("products", p, products, e.products, e.magnitudes);
}

// A few numbers that are not finite. The clip's gradient of an infinite g times 0 is NaN in both.
void check_not_finite() {
  const float infinity = std::numeric_limits<float>::infinity(), values[] = {std::nanf(""), infinity, -infinity};
  Problem p = random_problem();
  std::vector<float> *const where[] = {&p.x, &p.w, &p.g};
  for (int i = 0; i < 3; ++i) {
    std::vector<float> &numbers = *where[pick(0, 2)];
    numbers[size_t(pick(0, int64_t(numbers.size()) - 1))] = values[pick(0, 2)];
  }
  check(p);
}

// Nothing in, nothing out: outputs of size 0 are left alone, those of size n are zeros.
void check_empty() {
  Problem p = random_problem();
  const adderize_shape whole = p.s;
  const auto run = [&](const adderize_shape &s) {
    float *const none = nullptr;
    std::vector<float> y(size_t(s.n * s.oh * s.ow * s.cout), 1), dx(size_t(s.n * s.h * s.w * s.c), 1);
    std::vector<float> dw(size_t(s.cout * (s.c / s.groups) * s.kh * s.kw), 1);
    expect("an empty forward failed", adderize_forward(&s, none, none, p.strides, y.data(), 0, 2) == ADDERIZE_OK);
    expect("an empty input gradient failed",
           adderize_input_gradient(&s, none, none, none, p.strides, dx.data(), 0, 2) == ADDERIZE_OK);
    expect("an empty filter gradient failed",
           adderize_sign_filter_gradient(&s, none, none, none, p.strides, dw.data(), 2) == ADDERIZE_OK);
    std::vector<float> products(dw.size(), 0);
    if (s.n == 0 && s.c == s.groups && s.cout == s.groups) {
      products.assign(products.size(), 1);
      expect("empty products failed", adderize_depthwise_products(&s, none, none, products.data(), 2) == ADDERIZE_OK);
    }
    for (const std::vector<float> *out : {&y, &dx, &dw, &products})
      expect("an empty sum is not zero", std::all_of(out->begin(), out->end(), [](float v) { return v == 0; }));
  };
  adderize_shape empty = whole;
  empty.n = 0;
  run(empty);
  empty = whole;
  empty.c = 0;
  run(empty);
  empty = whole;
  empty.cout = 0;
  run(empty);
}

void check_transpose() {
  const int64_t batch = pick(1, 3), rows = pick(1, 70), columns = pick(1, 70);
  const std::vector<float> in = noise(batch * rows * columns, 0);
  std::vector<float> out(in.size());
  expect("transpose failed", adderize_transpose(batch, rows, columns, in.data(), out.data(), 2) == ADDERIZE_OK);
  bool same = true;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        same = same && out[size_t((b * columns + j) * rows + i)] == in[size_t((b * rows + i) * columns + j)];
  expect("transpose is wrong", same);
}

void check_centre() {
  const int64_t positions = pick(1, 3000), channels = pick(1, 80);
  std::vector<float> mean(size_t(channels), 0.0f);
  int far = -1;
  expect("centre failed",
         adderize_centre(positions, channels, noise(positions * channels, 1000).data(), mean.data(), &far) == ADDERIZE_OK);
  expect("centre is wrong", far == 1 && std::fabs(mean[0] - 1000) < 5);
}

void check_refusals() {
  Problem p = random_problem();
  std::vector<float> y(size_t(p.s.n * p.s.oh * p.s.ow * p.s.cout));
  const auto forward = [&](const adderize_shape &s, int form, int threads) {
    return adderize_forward(&s, p.x.data(), p.w.data(), p.strides, y.data(), form, threads);
  };
  adderize_shape bad = p.s;
  bad.oh += 1;
  expect("a wrong output size is taken", forward(bad, 0, 1) == ADDERIZE_BAD_ARGUMENT);
  bad = p.s;
  bad.groups = 0;
  expect("no groups are taken", forward(bad, 0, 1) == ADDERIZE_BAD_ARGUMENT);
  bad = p.s;
  bad.n = int64_t(1) << 60;
  expect("a huge batch is taken", forward(bad, 0, 1) == ADDERIZE_BAD_ARGUMENT);
  bad.c = bad.cout = int64_t(1) << 16, bad.groups = 1, bad.n = int64_t(1) << 48;  // 2^64 elements
  bad.h = bad.w = bad.kh = bad.kw = bad.stride_h = bad.stride_w = bad.dilation_h = bad.dilation_w = bad.oh = bad.ow = 1;
  bad.padding_h = bad.padding_w = 0;
  expect("2^64 elements are taken for none", forward(bad, 0, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("an unknown form is taken", forward(p.s, 7, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("no threads are taken", forward(p.s, 0, 0) == ADDERIZE_BAD_ARGUMENT);
  expect("a null shape is taken",
         adderize_forward(nullptr, p.x.data(), p.w.data(), p.strides, y.data(), 0, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("an unknown instruction set is taken", adderize_set_cpu("avx9") == ADDERIZE_UNSUPPORTED_CPU);
  expect("the ABI version differs from the header's", adderize_abi_version() == ADDERIZE_ABI_VERSION);
}

void check_totals() {
  for (int64_t positions : {1, 3, 257, 20011})
    for (int64_t channels : {1, 3, 16, 67}) {
      const std::vector<float> x = noise(positions * channels, 100);
      std::vector<double> expected(static_cast<size_t>(channels)), totals(expected), threaded(expected);
      for (size_t i = 0; i < x.size(); ++i) expected[i % size_t(channels)] += double(x[i]);
      expect("totals failed", adderize_channel_totals(positions, channels, x.data(), totals.data(), 1) == ADDERIZE_OK);
      expect("totals failed", adderize_channel_totals(positions, channels, x.data(), threaded.data(), 5) == ADDERIZE_OK);
      expect("threads change a total", totals == threaded);
      for (size_t c = 0; c < expected.size(); ++c)
        expect("a total is wrong", std::fabs(totals[c] - expected[c]) <= 1e-12 * std::fabs(expected[c]));
    }
  double total;
  expect("no positions are accepted", adderize_channel_totals(0, 1, nullptr, &total, 1) == ADDERIZE_BAD_ARGUMENT);
}

// Every accumulator sums the term of its formula, as often as the loop says.
void check_register_loops() {
  const float operands[][3] = {{1, 3, 2}, {3, 1, 2}, {5, 5, 4}, {4, 250, 1}, {0, 0, 1}};
  for (const float *o : operands) {
    const double x = o[0], f = o[1], g = o[2];
    const double terms[] = {x * f, std::max(x, f), g * std::min(std::max(f - x, -1.0), 1.0), g * ((x > f) - (x < f)),
                            std::fabs(x - f)};
    for (int form = 0; form < 5; ++form)
      for (int64_t rounds : {1, 130, 4096}) {
        int64_t pairs = 0, threaded = 0;
        double total = 0, sum = 0;
        expect("a register loop failed", adderize_register_loop(form, rounds, o, 1, &pairs, &total) == ADDERIZE_OK);
        expect("a register loop failed", adderize_register_loop(form, rounds, o, 3, &threaded, &sum) == ADDERIZE_OK);
        expect("no pairs were summed", pairs > 0 && pairs % rounds == 0 && threaded == 3 * pairs);
        expect("a register loop's sum is wrong", total == double(pairs) * terms[form] && sum == 3 * total);
      }
  }
  const float bytes[3] = {1, 256, 0};
  int64_t pairs;
  double total;
  expect("no rounds are taken", adderize_register_loop(0, 0, bytes, 1, &pairs, &total) == ADDERIZE_BAD_ARGUMENT);
  expect("too many rounds are taken", adderize_register_loop(0, (1 << 20) + 1, bytes, 1, &pairs, &total) == ADDERIZE_BAD_ARGUMENT);
  expect("an unknown loop is taken", adderize_register_loop(5, 1, bytes, 1, &pairs, &total) == ADDERIZE_BAD_ARGUMENT);
  expect("256 is taken for a byte",
         adderize_register_loop(ADDERIZE_LOOP_BYTES, 1, bytes, 1, &pairs, &total) == ADDERIZE_BAD_ARGUMENT);
}

}  // namespace

int main(int argc, char **argv) {
  const int problems = argc > 1 ? std::atoi(argv[1]) : 150;
  std::string cpus = adderize_available_cpus();
  cpus += ',';
  for (size_t from = 0, to; (to = cpus.find(',', from)) != std::string::npos; from = to + 1) {
    const std::string cpu = cpus.substr(from, to - from);
    expect("an offered instruction set is refused", adderize_set_cpu(cpu.c_str()) == ADDERIZE_OK);
    generator.seed(1);
    for (int i = 0; i < problems; ++i) {
      check(random_problem());
      check_transpose();
    }
    for (int i = 0; i < problems / 3; ++i) check_not_finite();
    check_empty();
    check_totals();
    check_register_loops();
  }
  check_centre();
  check_refusals();
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures != 0;
}
