// The tuned file: a header, then one line per problem, `<algorithm|default> <problem> ;`.
//
//     # any comment
//     primus-cublaslt 1
//     cublaslt 130102
//     device NVIDIA H200
//     multiprocessors 132
//     capability 9.0
//     problems 2
//     Gemm_Cublaslt_id_66_… transA=T transB=N m=4096 … ;
//     default tokens=n transA=N … ;
//
// `tokens=n` (or k) says that this dimension varies: the entry also serves other sizes of it. A
// line without its final `;` was torn. Written by primus/gemm/cublaslt/algo_file.py.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "algorithm.h"

namespace primus {

struct Entry {
  Problem problem;
  Algorithm algorithm;
  bool is_default = false;
};

class TunedFile {
 public:
  // Reads the file; whatever is wrong with a line is counted, never an error.
  void read(const char* path);

  // The entry of a problem, or of the nearest size of a dimension that varies; nullptr: unknown.
  const Entry* find(const Problem& problem, bool* nearest) const;

  // Empty where the file holds for this library and device; else why not.
  std::string mismatch(size_t version, const Device* device) const;

  const std::string& failure() const { return failure_; }
  int bad_lines() const { return bad_lines_; }
  const std::string& first_bad() const { return first_bad_; }
  size_t size() const { return entries_.size(); }

 private:
  bool read_header(std::string_view line);
  bool read_entry(std::string_view line, std::string* error);
  void add(Entry entry, Field tokens);

  std::string failure_ = "no file was named";
  std::string device_;
  std::string first_bad_;
  int64_t format_ = 0;
  int64_t version_ = 0;
  int64_t multiprocessors_ = 0;
  std::string capability_;
  int64_t problems_ = -1;
  int bad_lines_ = 0;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unordered_map<Problem, const Entry*, ProblemHash> exact_;
  // By the problem without the dimension that varies.
  std::unordered_map<Problem, std::vector<const Entry*>, ProblemHash> families_[2];
};

}  // namespace primus
