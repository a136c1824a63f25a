// The kernels on bytes against a naive loop, to the bit, without Python: meant for AddressSanitizer and UBSan. Everything is
// allocated to the byte.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "adderize.h"

namespace {

std::mt19937 generator(2);
int failures = 0, checks = 0;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

void expect(const char *what, bool good) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("%s on %s\n", what, adderize_active_cpu());
}

std::vector<uint8_t> noise(int64_t count) {
  const int64_t extremes[][2] = {{0, 255}, {0, 255}, {0, 0}, {255, 255}};
  const auto &range = extremes[pick(0, 3)];
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (uint8_t &v : values) v = uint8_t(pick(range[0], range[1]));
  return values;
}

struct Problem {
  adderize_shape s;
  std::vector<uint8_t> x, w, residual;
  std::vector<float> scale, shift;
  int zero_point;
  adderize_u8_epilogue epilogue;

  size_t outputs() const { return size_t(s.n * s.oh * s.ow * s.cout); }
  int64_t at_x(int64_t n, int64_t c, int64_t y, int64_t x_) const {
    if (y < 0 || y >= s.h || x_ < 0 || x_ >= s.w) return zero_point;
    return x[size_t(((n * s.h + y) * s.w + x_) * s.c + c)];
  }
  // w is dense in (cout, kh, kw, cin / groups) order.
  size_t w_index(int64_t co, int64_t i, int64_t y, int64_t x_) const {
    return size_t(((co * s.kh + y) * s.kw + x_) * (s.c / s.groups) + i);
  }
};

Problem random_problem() {
  Problem p = {};
  adderize_shape &s = p.s;
  const int64_t kinds[] = {1, 1, 1, 2, 3, 21, 70};
  s.groups = kinds[pick(0, 6)];
  const bool narrow = s.groups > 20 || pick(0, 2) == 0;
  const int64_t cg = narrow ? pick(1, 9) : pick(1, 40), og = narrow ? pick(1, 9) : pick(1, 40);
  s.n = pick(1, 3), s.c = cg * s.groups, s.cout = og * s.groups;
  s.kh = pick(1, 5), s.kw = pick(1, 5), s.stride_h = pick(1, 3), s.stride_w = pick(1, 3);
  s.padding_h = pick(0, 2), s.padding_w = pick(0, 2), s.dilation_h = pick(1, 2), s.dilation_w = pick(1, 2);
  if (pick(0, 2) == 0) s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
  if (pick(0, 3) == 0) s.padding_h = s.padding_w = 0;
  if (pick(0, 4) == 0) s.kh = s.kw = s.stride_h = s.stride_w = 1;
  s.h = std::max<int64_t>(pick(1, 9), s.dilation_h * (s.kh - 1) + 1);
  s.w = std::max<int64_t>(pick(1, 30), s.dilation_w * (s.kw - 1) + 1);
  s.oh = (s.h + 2 * s.padding_h - s.dilation_h * (s.kh - 1) - 1) / s.stride_h + 1;
  s.ow = (s.w + 2 * s.padding_w - s.dilation_w * (s.kw - 1) - 1) / s.stride_w + 1;
  p.x = noise(s.n * s.h * s.w * s.c);
  p.w = noise(s.cout * cg * s.kh * s.kw);
  p.zero_point = int(pick(0, 255));
  std::normal_distribution<float> normal;
  for (int64_t c = 0; c < s.cout; ++c) {
    p.scale.push_back(normal(generator) * 3 / float(cg * s.kh * s.kw));
    p.shift.push_back(128 + 60 * normal(generator));
  }
  if (pick(0, 1)) p.residual = noise(int64_t(p.outputs()));
  p.epilogue = {p.scale.data(),     p.shift.data(),       nullptr,        nullptr, normal(generator),
                float(pick(0, 99)), float(pick(99, 255)), int(pick(0, 1))};
  return p;
}

// As adderize.h states the order.
std::vector<uint8_t> pack(const Problem &p) {
  const adderize_shape &s = p.s;
  const int64_t cg = s.c / s.groups, og = s.cout / s.groups;
  std::vector<uint8_t> out;
  if (s.groups > 1 && cg <= 8 && og <= 16 && cg * og < 64) {
    const int64_t lanes = 64 / og * og;
    for (int64_t first = 0; first < s.cout; first += lanes)
      for (int64_t t = 0; t < s.kh * s.kw * cg; ++t)
        for (int64_t c = first; c < first + 64; ++c)
          out.push_back(c < std::min(first + lanes, s.cout) ? p.w[p.w_index(c, t % cg, t / cg / s.kw, t / cg % s.kw)] : 0);
    return out;
  }
  const bool unfolded = 4 * round_up(s.kw * cg, 8) <= 3 * s.kw * round_up(cg, 8);
  const int64_t tap = round_up(cg, 8), row = unfolded ? round_up(s.kw * cg, 8) : s.kw * tap, k = s.kh * row;
  out.assign(size_t(s.groups * round_up(og, 8) * k), 0);
  for (int64_t co = 0; co < s.cout; ++co)
    for (int64_t y = 0; y < s.kh; ++y)
      for (int64_t x = 0; x < s.kw; ++x)
        for (int64_t i = 0; i < cg; ++i) {
          const int64_t place = y * row + (unfolded ? x * cg : x * tap) + i, filter = co / og * round_up(og, 8) + co % og;
          out[size_t(filter / 8 * 8 * k + place / 8 * 64 + filter % 8 * 8 + place % 8)] = p.w[p.w_index(co, i, y, x)];
        }
  return out;
}

std::vector<int32_t> distances(const Problem &p) {
  const adderize_shape &s = p.s;
  const int64_t cg = s.c / s.groups, og = s.cout / s.groups;
  std::vector<int32_t> out;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t oy = 0; oy < s.oh; ++oy)
      for (int64_t ox = 0; ox < s.ow; ++ox)
        for (int64_t co = 0; co < s.cout; ++co) {
          int32_t sum = 0;
          for (int64_t ky = 0; ky < s.kh; ++ky)
            for (int64_t kx = 0; kx < s.kw; ++kx)
              for (int64_t i = 0; i < cg; ++i) {
                const int64_t y = oy * s.stride_h - s.padding_h + ky * s.dilation_h,
                              x = ox * s.stride_w - s.padding_w + kx * s.dilation_w;
                sum += int32_t(std::abs(p.at_x(n, co / og * cg + i, y, x) - p.w[p.w_index(co, i, ky, kx)]));
              }
          out.push_back(sum);
        }
  return out;
}

// What becomes of the distance that is output i.
float scaled(const Problem &p, size_t i, int32_t sum) {
  const size_t co = i % size_t(p.s.cout);
  // Through volatile variables: the driver itself must not fuse.
  volatile float v = float(sum) * p.scale[co];
  v = v + p.shift[co];
  if (!p.residual.empty()) {
    volatile float added = p.epilogue.residual_scale * float(p.residual[i]);
    v = v + added;
  }
  const float clamped = std::fmin(p.epilogue.high, std::fmax(p.epilogue.low, v));
  return p.epilogue.float_output ? clamped : std::nearbyint(clamped);
}

void check(Problem &p) {
  const std::vector<int32_t> sums = distances(p);
  const std::vector<uint8_t> packed = pack(p);
  std::vector<uint8_t> small(p.epilogue.float_output ? 0 : p.outputs(), 99);
  std::vector<float> large(p.epilogue.float_output ? p.outputs() : 0, NAN);
  p.epilogue.residual = p.residual.empty() ? nullptr : p.residual.data();
  p.epilogue.output = p.epilogue.float_output ? static_cast<void *>(large.data()) : small.data();
  const int status = adderize_forward_u8(&p.s, p.x.data(), packed.data(), p.zero_point, &p.epilogue, int(pick(1, 3)));
  expect("the forward pass on bytes failed", status == ADDERIZE_OK);
  for (size_t i = 0; i < sums.size(); ++i)
    if ((p.epilogue.float_output ? large[i] : float(small[i])) != scaled(p, i, sums[i]))
      return expect("the forward pass on bytes is wrong", false);
  expect("", true);
}

// Any factors at all: sums that leave 32 bits wrap around.
void check_shifted(const Problem &p) {
  const std::vector<int32_t> sums = distances(p);
  const std::vector<uint8_t> packed = pack(p);
  const auto integers = [](size_t count, int64_t most) {
    std::vector<int32_t> values(count);
    for (int32_t &v : values) v = int32_t(pick(-most, most));
    return values;
  };
  const int64_t most = pick(0, 3) ? 1 << 12 : INT32_MAX;
  const std::vector<int32_t> factor = integers(size_t(p.s.cout), most), bias = integers(size_t(p.s.cout), INT32_MAX),
                             wide = integers(p.outputs(), INT32_MAX);
  const int kind = int(pick(0, 2)), fraction = int(pick(0, 31));
  const bool large = pick(0, 1);
  const int32_t low = large ? int32_t(pick(INT32_MIN, 0)) : int32_t(pick(0, 99));
  const int32_t high = large ? int32_t(pick(0, INT32_MAX)) : int32_t(pick(99, 255));
  const std::vector<uint8_t> narrow = noise(int64_t(p.outputs()));
  const void *residuals[] = {nullptr, narrow.data(), wide.data()};
  std::vector<uint8_t> bytes(large ? 0 : p.outputs(), 99);
  std::vector<int32_t> words(large ? p.outputs() : 0, 99);
  void *output = large ? static_cast<void *>(words.data()) : bytes.data();
  const int32_t residual_factor = int32_t(pick(-most, most));
  const adderize_u8_shift_epilogue e = {factor.data(), bias.data(), residuals[kind], output,    residual_factor,
                                        low,           high,        fraction,        kind == 2, large};
  expect("the shifted forward pass failed",
         adderize_forward_u8_shifted(&p.s, p.x.data(), packed.data(), p.zero_point, &e, int(pick(1, 3))) == ADDERIZE_OK);
  for (size_t i = 0; i < sums.size(); ++i) {
    const size_t co = i % size_t(p.s.cout);
    const int64_t residual = kind == 0 ? 0 : kind == 1 ? narrow[i] : wide[i];
    const int64_t total = int64_t(sums[i]) * factor[co] + residual * residual_factor + bias[co];
    const int32_t v = int32_t(uint32_t(uint64_t(total))) >> fraction;
    if ((large ? words[i] : int32_t(bytes[i])) != std::min(high, std::max(low, v)))
      return expect("the shifted forward pass is wrong", false);
  }
}

void check_refusals_of_shifts() {
  Problem p = random_problem();
  const std::vector<uint8_t> packed = pack(p);
  const std::vector<int32_t> factors(size_t(p.s.cout), 1);
  std::vector<int32_t> y(p.outputs());
  const adderize_u8_shift_epilogue good = {factors.data(), factors.data(), nullptr, y.data(), 0, 0, 255, 3, 0, 1};
  const auto status = [&](const adderize_u8_shift_epilogue &e, int threads) {
    return adderize_forward_u8_shifted(&p.s, p.x.data(), packed.data(), 0, &e, threads);
  };
  expect("a good epilogue failed", status(good, 1) == ADDERIZE_OK);
  expect("no threads are taken", status(good, 0) == ADDERIZE_BAD_ARGUMENT);
  adderize_u8_shift_epilogue e = good;
  e.fraction = 32;
  expect("32 fraction bits are taken", status(e, 1) == ADDERIZE_BAD_ARGUMENT);
  e = good, e.low = 256;
  expect("empty bounds are taken", status(e, 1) == ADDERIZE_BAD_ARGUMENT);
  e = good, e.int32_output = 0, e.high = 256;
  expect("a byte of 256 is taken", status(e, 1) == ADDERIZE_BAD_ARGUMENT);
  e = good, e.factor = nullptr;
  expect("no factors are taken", status(e, 1) == ADDERIZE_BAD_ARGUMENT);
}

// 100,000 taps of the largest distance.
void check_longest() {
  Problem p = random_problem();
  p.s = {1, 100000, 1, 1, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1};
  p.x.assign(100000, 255);
  p.w.assign(300000, 0);
  p.residual.clear();
  p.scale.assign(3, 1.0f);
  p.shift.assign(3, 0.0f);
  p.epilogue = {p.scale.data(), p.shift.data(), nullptr, nullptr, 0, -INFINITY, INFINITY, 1};
  check(p);
}

void check_to_bytes() {
  const int64_t count = pick(0, 3) ? pick(0, 200) : 70000;
  const float steps = float(pick(1, 300)) / 7, zero_point = float(pick(-300, 300));
  const int levels = int(pick(1, 255));
  std::vector<float> x(static_cast<size_t>(count));
  std::normal_distribution<float> normal;
  const float strange[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0.5f / steps};
  for (float &v : x) v = pick(0, 9) ? 5 * normal(generator) : strange[pick(0, 5)];
  std::vector<uint8_t> q(x.size(), 7);
  expect("floats to bytes failed",
         adderize_to_bytes(count, x.data(), steps, zero_point, levels, q.data(), int(pick(1, 3))) == ADDERIZE_OK);
  for (size_t i = 0; i < x.size(); ++i) {
    volatile float scaled = x[i] * steps;
    volatile float place = std::nearbyint(scaled);
    place = place + zero_point;
    const float inside = place > 0 ? std::fmin(place, float(levels)) : 0;  // a NaN is not above 0
    if (float(q[i]) != inside) return expect("floats to bytes is wrong", false);
  }
}

void check_max_pool() {
  Problem p = random_problem();
  adderize_shape &s = p.s;
  s.c = s.cout = pick(1, 150), s.groups = 1;
  s.padding_h = pick(0, s.kh / 2), s.padding_w = pick(0, s.kw / 2);
  s.oh = (s.h + 2 * s.padding_h - s.dilation_h * (s.kh - 1) - 1) / s.stride_h + 1;
  s.ow = (s.w + 2 * s.padding_w - s.dilation_w * (s.kw - 1) - 1) / s.stride_w + 1;
  if (pick(0, 1) && (s.oh * s.stride_h) - s.padding_h < s.h) ++s.oh;  // a window that hangs over the edge
  p.x = noise(s.n * s.h * s.w * s.c);
  p.zero_point = 0;
  std::vector<uint8_t> q(p.outputs(), 7);
  expect("max pooling failed", adderize_max_pool_u8(&s, p.x.data(), q.data(), int(pick(1, 3))) == ADDERIZE_OK);
  for (size_t i = 0; i < q.size(); ++i) {
    const int64_t c = int64_t(i) % s.c, ox = int64_t(i) / s.c % s.ow, oy = int64_t(i) / (s.c * s.ow) % s.oh,
                  n = int64_t(i) / (s.c * s.ow * s.oh);
    int64_t top = 0;
    for (int64_t ky = 0; ky < s.kh; ++ky)
      for (int64_t kx = 0; kx < s.kw; ++kx)
        top = std::max(top, p.at_x(n, c, oy * s.stride_h - s.padding_h + ky * s.dilation_h,
                                   ox * s.stride_w - s.padding_w + kx * s.dilation_w));
    if (q[i] != top) return expect("max pooling is wrong", false);
  }
}

void check_refusals_of_images() {
  const float x = 1;
  const uint8_t q = 1;
  uint8_t out;
  expect("no steps are taken", adderize_to_bytes(1, &x, 0, 0, 255, &out, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("256 levels are taken", adderize_to_bytes(1, &x, 1, 0, 256, &out, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("an infinite zero point is taken", adderize_to_bytes(1, &x, 1, INFINITY, 255, &out, 1) == ADDERIZE_BAD_ARGUMENT);
  expect("no floats are taken", adderize_to_bytes(1, nullptr, 1, 0, 255, &out, 1) == ADDERIZE_BAD_ARGUMENT);
  adderize_shape s = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1};
  expect("one value failed", adderize_max_pool_u8(&s, &q, &out, 1) == ADDERIZE_OK);
  expect("no output is taken", adderize_max_pool_u8(&s, &q, nullptr, 1) == ADDERIZE_BAD_ARGUMENT);
  s.oh = 2;
  expect("a window beyond the image is taken", adderize_max_pool_u8(&s, &q, &out, 1) == ADDERIZE_BAD_ARGUMENT);
  s.oh = 1, s.groups = 2;
  expect("groups are taken", adderize_max_pool_u8(&s, &q, &out, 1) == ADDERIZE_BAD_ARGUMENT);
}

void check_refusals() {
  Problem p = random_problem();
  const std::vector<uint8_t> packed = pack(p);
  std::vector<float> y(p.outputs());
  p.epilogue.output = y.data();
  const auto refused = [&](const adderize_shape &s, int zero_point, const adderize_u8_epilogue &e, int threads) {
    return adderize_forward_u8(&s, p.x.data(), packed.data(), zero_point, &e, threads) == ADDERIZE_BAD_ARGUMENT;
  };
  adderize_shape bad = p.s;
  bad.oh += 1;
  expect("a wrong output size is taken", refused(bad, 0, p.epilogue, 1));
  expect("a zero point of 256 is taken", refused(p.s, 256, p.epilogue, 1));
  expect("no threads are taken", refused(p.s, 0, p.epilogue, 0));
  adderize_u8_epilogue e = p.epilogue;
  e.low = 3, e.high = 2;
  expect("empty bounds are taken", refused(p.s, 0, e, 1));
  e = p.epilogue;
  e.float_output = 0, e.high = 256;
  expect("a byte of 256 is taken", refused(p.s, 0, e, 1));
  e = p.epilogue;
  e.output = nullptr;
  expect("no output is taken", refused(p.s, 0, e, 1));
  bad = p.s;
  bad.n = 0;
  expect("an empty batch failed", adderize_forward_u8(&bad, nullptr, nullptr, 0, &e, 1) == ADDERIZE_OK);
}

}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 150;
  std::string cpus = adderize_available_cpus();
  for (size_t start = 0; start <= cpus.size();) {
    const size_t end = std::min(cpus.find(',', start), cpus.size());
    adderize_set_cpu(cpus.substr(start, end - start).c_str());
    start = end + 1;
    for (int i = 0; i < rounds; ++i) {
      Problem p = random_problem();
      check(p);
      check_shifted(p);
      check_to_bytes();
      check_max_pool();
    }
    check_longest();
    check_refusals();
    check_refusals_of_shifts();
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
