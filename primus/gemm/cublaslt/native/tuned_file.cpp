#include "tuned_file.h"

#include <algorithm>
#include <cmath>
#include <fstream>

namespace primus {

namespace {

constexpr size_t kLongestLine = 4096;
constexpr Field kVarying[2] = {kN, kK};

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

Problem without(Problem problem, Field dimension) {
  problem.value[dimension] = 0;
  return problem;
}

}  // namespace

void TunedFile::read(const char* path) {
  failure_.clear();
  std::ifstream stream(path);
  if (!stream) {
    failure_ = std::string("cannot read ") + path;
    return;
  }
  std::string line, error;
  for (int number = 1; std::getline(stream, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    error = "too long";
    const bool good =
        line.size() <= kLongestLine && (read_header(line) || read_entry(line, &error));
    if (good) continue;
    if (++bad_lines_ == 1) first_bad_ = "line " + std::to_string(number) + ": " + error;
  }
  if (format_ != 1) {
    failure_ = std::string(path) + " is not a tuned file of this version";
  } else if (problems_ != static_cast<int64_t>(entries_.size())) {
    if (++bad_lines_ == 1) first_bad_ = "entries are missing";
  }
}

bool TunedFile::read_header(std::string_view line) {
  const auto number = [&line](std::string_view name, int64_t* value) {
    return starts_with(line, name) && parse_int(line.substr(name.size()), value);
  };
  const auto words = [&line](std::string_view name, std::string* value) {
    if (!starts_with(line, name)) return false;
    *value = std::string(line.substr(name.size()));
    return true;
  };
  return number("primus-cublaslt ", &format_) || number("cublaslt ", &version_) ||
         number("multiprocessors ", &multiprocessors_) || number("problems ", &problems_) ||
         words("device ", &device_) || words("capability ", &capability_);
}

bool TunedFile::read_entry(std::string_view line, std::string* error) {
  constexpr std::string_view kEnd = " ;";
  *error = "torn";
  if (line.size() < kEnd.size() || line.substr(line.size() - kEnd.size()) != kEnd) return false;
  line.remove_suffix(kEnd.size());
  const std::string_view name = line.substr(0, line.find(' '));
  line.remove_prefix(std::min(line.size(), name.size() + 1));
  Entry entry;
  entry.is_default = name == "default";
  *error = "no name of an algorithm";
  if (!entry.is_default && !parse_algorithm(name, &entry.algorithm)) return false;
  Field tokens = kFields;
  for (Field dimension : kVarying) {
    const std::string_view mark = dimension == kN ? "tokens=n " : "tokens=k ";
    if (!starts_with(line, mark)) continue;
    tokens = dimension;
    line.remove_prefix(mark.size());
  }
  if (!parse_problem(line, &entry.problem, error)) return false;
  add(entry, tokens);
  return true;
}

void TunedFile::add(Entry entry, Field tokens) {
  entries_.push_back(std::make_unique<Entry>(entry));
  const Entry* kept = entries_.back().get();
  exact_[entry.problem] = kept;
  for (int i = 0; i < 2; ++i) {
    if (kVarying[i] == tokens) families_[i][without(entry.problem, tokens)].push_back(kept);
  }
}

const Entry* TunedFile::find(const Problem& problem, bool* nearest) const {
  *nearest = false;
  const auto found = exact_.find(problem);
  if (found != exact_.end()) return found->second;
  const Entry* best = nullptr;
  double least = INFINITY;
  for (int i = 0; i < 2; ++i) {
    const auto family = families_[i].find(without(problem, kVarying[i]));
    if (family == families_[i].end()) continue;
    for (const Entry* entry : family->second) {
      const double distance =
          std::fabs(std::log(double(problem[kVarying[i]])) -
                    std::log(double(entry->problem[kVarying[i]])));
      if (distance < least) {
        least = distance;
        best = entry;
      }
    }
  }
  *nearest = best != nullptr;
  return best;
}

std::string TunedFile::mismatch(size_t version, const Device* device) const {
  if (!failure_.empty()) return failure_;
  if (static_cast<int64_t>(version) != version_) {
    return "tuned with cuBLASLt " + std::to_string(version_) + ", here is " +
           std::to_string(version);
  }
  if (!device) return "";
  const std::string capability =
      std::to_string(device->major) + "." + std::to_string(device->minor);
  if (device->name != device_ || device->multiprocessors != multiprocessors_ ||
      capability != capability_) {
    return "tuned on " + device_ + " (" + std::to_string(multiprocessors_) +
           " multiprocessors, capability " + capability_ + "), here is " + device->name + " (" +
           std::to_string(device->multiprocessors) + ", " + capability + ")";
  }
  return "";
}

}  // namespace primus
